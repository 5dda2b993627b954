"""A pass saved and taken up again: the run goes on as if nothing had happened, bit for bit on the CPU.

There is one file, replaced atomically, so that a kill at any moment leaves the previous state or the new one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from moe_router.experts.optim import LossScale, restore_state, state_tensors
from moe_router.experts.schedule import Outcome
from moe_router.workspace import atomic

if TYPE_CHECKING:
    from moe_router.experts.trainer import Trainer


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often a pass saves itself, and what it must match to be resumed."""

    path: Path
    seconds: float
    digest: str

    def save(self, trainer: Trainer) -> None:
        """Write weights, optimiser states, outcomes and best states of every expert."""
        from safetensors.torch import save_file

        tensors = {}
        for name, optimiser in trainer.optimisers.items():
            for index, parameter in enumerate(trainer.parameters[name]):
                tensors[f"{name}/weight/{index}"] = parameter.data.contiguous()
            for key, value in state_tensors(optimiser):
                tensors[f"{name}/state/{key}"] = value.contiguous()
            for index, kept in enumerate(trainer.best.get(name, ())):
                tensors[f"{name}/best/{index}"] = kept
        note = {
            "digest": self.digest,
            "step": str(trainer.step),
            "outcomes": json.dumps({name: asdict(outcome) for name, outcome in trainer.outcomes.items()}),
            "scale": json.dumps(asdict(trainer.scale)),
        }
        with atomic(self.path) as temporary:
            save_file(tensors, temporary, metadata=note)

    def resume(self, trainer: Trainer) -> bool:
        """Put `trainer` where the saved run was; False when there is none, or it is damaged or of another run."""
        from safetensors import SafetensorError, safe_open

        self.clear_leftovers()
        if not self.path.exists():
            return False
        try:
            with safe_open(self.path, "pt") as file:
                note = file.metadata() or {}
                if note.get("digest") != self.digest:
                    return False
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except SafetensorError:
            return False
        for name, optimiser in trainer.optimisers.items():
            for index, parameter in enumerate(trainer.parameters[name]):
                parameter.data.copy_(tensors[f"{name}/weight/{index}"])
            restore_state(optimiser, _under(tensors, f"{name}/state/"))
            best = _under(tensors, f"{name}/best/")
            if best:
                trainer.best[name] = [best[str(index)] for index in range(len(best))]
        trainer.step = int(note["step"])
        trainer.outcomes = {name: Outcome(**values) for name, values in json.loads(note["outcomes"]).items()}
        trainer.scale = LossScale(**json.loads(note["scale"]))
        return True

    def clear_leftovers(self) -> None:
        """Remove what a run that was killed while saving left half written."""
        for pattern in (f".{self.path.name}.*.part", ".tmp*"):  # ours, and the one that safetensors renames to ours
            for leftover in self.path.parent.glob(pattern):
                leftover.unlink(missing_ok=True)


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
