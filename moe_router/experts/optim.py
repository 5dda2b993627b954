"""Optimisers of single experts, their state on disk, and the loss scale of half precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from moe_router.experts import bnb
from moe_router.experts.schedule import Schedule

BETAS = (0.9, 0.99)
SCALE_START = 2.0**12
SCALE_LIMIT = 2.0**16
SCALE_RAISE_AFTER = 200


def make_optimiser(parameters: Sequence[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) in the form that the schedule names; its rate is set at every step."""
    settings = {"lr": 0.0, "weight_decay": schedule.weight_decay, "betas": BETAS}
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **settings)
    return bnb.paged_adamw(parameters, 32 if schedule.optimizer.endswith("32bit") else 8, **settings)


def step_unless(broken: torch.Tensor, optimiser: torch.optim.Optimizer) -> None:
    """One step unless `broken` is 1; torch's own optimiser decides that on the device, so that the host need not wait."""
    if isinstance(optimiser, torch.optim.AdamW):
        optimiser.found_inf = broken
        optimiser.step()
    elif not broken:
        optimiser.step()


def state_tensors(optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Every number of the optimiser's state as a named tensor: `<parameter>.<key>`; bitsandbytes' code books are constants."""
    for index, parameter in enumerate(optimiser.param_groups[0]["params"]):
        for key, value in optimiser.state.get(parameter, {}).items():
            if not key.startswith("qmap"):
                yield f"{index}.{key}", value if isinstance(value, torch.Tensor) else torch.tensor(value)


def restore_state(optimiser: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `state_tensors` gave, under the same names, bit for bit."""
    group = optimiser.param_groups[0]
    for index, parameter in enumerate(group["params"]):
        saved = {key.partition(".")[2]: value for key, value in tensors.items() if key.partition(".")[0] == str(index)}
        if not saved:
            continue
        if isinstance(optimiser, torch.optim.AdamW):
            optimiser.state[parameter] = {key: value.to(parameter.device) for key, value in saved.items()}
            continue
        bnb.prepare_state(optimiser, parameter, index)
        state = optimiser.state[parameter]
        for key, value in saved.items():
            if isinstance(state.get(key), torch.Tensor):
                state[key].copy_(value)  # in place: paged memory has to stay paged
            else:
                state[key] = value.item() if value.ndim == 0 else value.to(parameter.device)


@dataclass
class LossScale:
    """A power of two on the loss that keeps half-precision gradients from vanishing (Micikevicius et al. 2018).

    Too large, a gradient overflows: the same step is taken again with half of it. 1 in types with fp32's range.
    """

    value: float = 1.0
    good: int = 0
    """Steps since it last changed."""

    @classmethod
    def of(cls, dtype: torch.dtype) -> LossScale:
        return cls(SCALE_START if dtype == torch.float16 else 1.0)

    def lower(self) -> bool:
        """Halve it; False where there is nothing left to halve."""
        if self.value <= 1:
            return False
        self.value, self.good = self.value / 2, 0
        return True

    def passed(self) -> None:
        """One more step went well."""
        self.good += 1
        if 1 < self.value < SCALE_LIMIT and self.good >= SCALE_RAISE_AFTER:
            self.value, self.good = self.value * 2, 0
