"""Gated LoRA: the adapters of all experts on one frozen base, mixed per row.

The experts' factors lie side by side on one rank axis, A (R, d_in) and B (R, d_out), and every row of a batch gates
that axis with its own mixture:

    y = W·x + ((x·Aᵀ) ⊙ g)·B

This is exact for one expert per row, soft mixtures, ranks that differ, an always-on shared expert, and none at all
(LoRA: Hu et al. 2021). Two forms compute it. *Wide* multiplies all R slots and gates them; *gathered* picks each row's
slots first. Neither lets an unselected expert touch a row, not even with NaN in its weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from moe_router.errors import LibraryError
from moe_router.experts.base import Base

SHARED = "shared"
"""Folder and layout name of the always-on expert."""

WIDE_RATIO = 1.0
"""The wide form is chosen up to this many slots per active slot, as measured on a CPU (docs/performance.md). On a GPU the
engine and the trainer have forms of their own, and only scoring chooses by this."""


@dataclass(frozen=True)
class RankLayout:
    """Which slots of the rank axis belong to which expert: the shared expert first, then the routed ones in order."""

    names: tuple[str, ...]
    """Routed experts."""
    ranks: tuple[int, ...]
    shared_rank: int = 0

    @property
    def total(self) -> int:
        """R: slots of all experts."""
        return self.shared_rank + sum(self.ranks)

    @cached_property
    def slots(self) -> dict[str, slice]:
        """Slots of each expert, the shared one under SHARED if there is one."""
        found, start = {}, 0
        parts = [(SHARED, self.shared_rank)] if self.shared_rank else []
        for name, rank in [*parts, *zip(self.names, self.ranks, strict=True)]:
            found[name] = slice(start, start + rank)
            start += rank
        return found


class Mixing(Protocol):
    """How the rows of a batch use the adapters: `SlotRoute` in training and scoring, faster ways in the engine."""

    def output(self, layer: GatedLinear, x: torch.Tensor) -> torch.Tensor:
        """What the layer gives: its base's output and each row's mixture of adapters.

        *Shape:* (rows, seq, d_in) → (rows, seq, d_out).
        """


@dataclass(frozen=True)
class SlotRoute:
    """The mixtures of a batch, on the rank axis."""

    slots: torch.Tensor | None
    """(rows, K) indices into the rank axis, unused places R, the null slot; None in the wide form."""
    gates: torch.Tensor
    """Weight times LoRA scale: (rows, 1, K) gathered, (rows, 1, R) wide."""
    every: bool = False
    """Wide form: every row uses every slot, so nothing needs masking."""
    dropout: Dropout | None = None

    def output(self, layer: GatedLinear, x: torch.Tensor) -> torch.Tensor:
        """As Mixing says; differentiable."""
        y = layer.base(x)
        if self.dropout is not None:
            x = self.dropout(x, layer.index)
        if self.slots is None:
            return y + wide(x, layer.A[:-1].to(x.dtype), layer.B[:-1].to(x.dtype), self.gates, self.every)
        down = F.embedding(self.slots, layer.A).to(x.dtype)  # (rows, K, d_in)
        up = F.embedding(self.slots, layer.B).to(x.dtype)  # (rows, K, d_out)
        return gathered(x, y, down, up, self.gates)


@dataclass(frozen=True)
class Dropout:
    """Dropout whose mask depends only on seed, step, layer and the row's expert, never on the other rows."""

    rate: float
    seeds: tuple[int, ...]
    """One per row."""

    def __call__(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """*Shape:* (rows, seq, d_in) → same."""
        masks = []
        for seed in self.seeds:
            # numpy draws one number after the other, so that a row padded further keeps its mask
            draws = np.random.default_rng((seed, layer)).random(x.shape[1:], dtype=np.float32)
            masks.append(torch.from_numpy(draws) >= self.rate)
        return x * torch.stack(masks).to(x.device, x.dtype) / (1 - self.rate)


class GatedLinear(nn.Module):
    """A frozen linear layer plus the gated adapters of all experts.

    `A` is (R + 1, d_in) and `B` (R + 1, d_out); slot R is the null slot, always zero.
    """

    def __init__(self, base: nn.Module, index: int, rank: int, dtype: torch.dtype, state: _State) -> None:
        super().__init__()
        device = base.weight.device
        self.base = base
        self.index = index
        self.A = nn.Parameter(torch.zeros(rank + 1, base.in_features, dtype=dtype, device=device))
        self.B = nn.Parameter(torch.zeros(rank + 1, base.out_features, dtype=dtype, device=device))
        self._state = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """*Shape:* (rows, seq, d_in) → (rows, seq, d_out)."""
        return self.base(x) if self.route is None else self.route.output(self, x)

    @property
    def route(self) -> Mixing | None:
        """What the model's rows use now."""
        return self._state.route


def gathered(x: torch.Tensor, y: torch.Tensor, down: torch.Tensor, up: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """y + ((x·downᵀ) ⊙ gates)·up, each row with its own factors.

    *Shape:* x (rows, seq, d_in), y (rows, seq, d_out), down (rows, K, d_in), up (rows, K, d_out), gates (rows, 1, K).
    """
    hidden = torch.bmm(x, down.mT) * gates  # (rows, seq, K)
    return torch.baddbmm(y, hidden, up)


def wide(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, gates: torch.Tensor, every: bool = False) -> torch.Tensor:
    """((x·aᵀ) ⊙ gates)·b over all slots.

    Because 0 · NaN = NaN, a gate of zero alone would not keep a broken expert away from other rows: unselected slots
    are masked, broken slots leave the product, and rows that did select one become NaN as they should. On the way back
    a row that is not finite gives the adapters no gradient.

    *Shape:* x (rows, seq, d_in), a (R, d_in), b (R, d_out), gates (rows, 1, R) → (rows, seq, d_out).
    """
    if every:
        return (F.linear(x, a) * gates) @ b
    chosen = gates != 0  # (rows, 1, R)
    broken = ~(a.isfinite().all(1) & b.isfinite().all(1))  # (R,)
    a, b = (torch.where(broken[:, None], 0, factor) for factor in (a, b))
    hidden = F.linear(torch.where(x.isfinite(), x, 0), a) * gates  # (rows, seq, R)
    hidden = torch.where(chosen, torch.where(broken, torch.nan, hidden), 0)
    delta = hidden @ b
    if delta.requires_grad:
        delta.register_hook(lambda grad: torch.where(grad.isfinite().all(-1, keepdim=True), grad, 0))
    return delta


@dataclass
class _State:
    """What all layers of one model share."""

    route: Mixing | None = None


class RoutedModel:
    """A base with adapters attached to its linear layers.

    Attach and detach are explicit, since the layers of the base are replaced in place. Not thread-safe: the inference
    engine holds a lock around it.
    """

    def __init__(self, base: Base, layout: RankLayout, scales: Mapping[str, float], dtype: torch.dtype | None = None) -> None:
        """`scales` holds the LoRA scale of every expert in `layout.slots`; `dtype` defaults to the base's."""
        self.base = base
        self.layout = layout
        self._scale = torch.zeros(layout.total + 1)  # (R + 1,)
        for name, slots in layout.slots.items():
            self._scale[slots] = scales[name]
        self._state = _State()
        self.layers: dict[str, GatedLinear] = {}
        for index, (path, linear) in enumerate(base.linears().items()):
            layer = GatedLinear(linear, index, layout.total, dtype or base.dtype, self._state)
            _replace(base.model, path, layer)
            self.layers[path] = layer
        if not self.layers:
            raise LibraryError(f"base {base.id!r} has no linear layers to adapt: adapters are already attached, or none exist")

    @property
    def expert_ranks(self) -> tuple[int, ...]:
        return self.layout.ranks

    @property
    def shared_rank(self) -> int:
        return self.layout.shared_rank

    def detach(self) -> None:
        """Give the base its own layers back."""
        for path, layer in self.layers.items():
            _replace(self.base.model, path, layer.base)

    def __enter__(self) -> RoutedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def factors(self, name: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Views of one expert's factors by module path: A (r, d_in) and B (r, d_out), without the LoRA scale."""
        slots = self.layout.slots[name]
        return {path: (layer.A.data[slots], layer.B.data[slots]) for path, layer in self.layers.items()}

    def route(
        self, weights: np.ndarray | torch.Tensor, shared: np.ndarray | torch.Tensor | None = None, form: str = "auto"
    ) -> SlotRoute | None:
        """The mixtures of a batch on the rank axis; None where no row uses any adapter.

        `weights` is (rows, experts), `shared` (rows,) the shared expert's weight (default 1). `form` is `wide`,
        `gathered`, or `auto`: by the ratio of all slots to the slots that a row uses.
        """
        gates = self.gates(weights, shared)
        used = gates != 0  # (rows, R)
        most = int(used.sum(1).max()) if used.numel() else 0
        if most == 0:
            return None
        device, dtype = self.base.device, self.base.dtype
        every = bool(used.all())
        if every or form == "wide" or (form == "auto" and self.layout.total <= WIDE_RATIO * most):
            return SlotRoute(None, gates[:, None].to(device, dtype), every)
        slots, gates = self.select(gates, most)
        return SlotRoute(slots.to(device), gates[:, None].to(device, dtype))

    def gates(self, weights: np.ndarray | torch.Tensor, shared: np.ndarray | torch.Tensor | None = None) -> torch.Tensor:
        """Weight times LoRA scale of every slot; arguments as in `route`. *Shape:* → (rows, R) fp32 on the CPU."""
        weights = torch.as_tensor(np.asarray(weights), dtype=torch.float32)
        always = torch.ones(len(weights)) if shared is None else torch.as_tensor(np.asarray(shared), dtype=torch.float32)
        spread = torch.cat([always[:, None].expand(-1, self.shared_rank), _spread(weights, self.expert_ranks)], 1)
        return spread * self._scale[:-1]

    def select(self, gates: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `count` slots of each row whose gate is not 0, and their gates; places left over name the null slot.

        *Shape:* gates (rows, R) → slots (rows, count) int64, gates (rows, count).
        """
        used = gates != 0
        order = torch.argsort(used.to(torch.int8), dim=1, descending=True, stable=True)[:, :count]
        found = used.gather(1, order)
        slots = torch.where(found, order, self.layout.total)
        gates = torch.where(found, gates.gather(1, order), 0)
        short = (0, count - slots.shape[1])
        return F.pad(slots, short, value=self.layout.total), F.pad(gates, short)

    @contextlib.contextmanager
    def routed(self, route: Mixing | None) -> Iterator[None]:
        """Forward passes inside use this route."""
        before, self._state.route = self._state.route, route
        try:
            yield
        finally:
            self._state.route = before


def _spread(weights: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """Each expert's weight repeated over its slots: (rows, experts) → (rows, Σ ranks)."""
    return weights.repeat_interleave(torch.tensor(ranks, dtype=torch.int64), dim=1)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, name, module)
