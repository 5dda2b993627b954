"""Every expert's loss on records that none was trained on: measured once, kept beside the experts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_router.data.slices import Slices
from moe_router.errors import LibraryError, WorkspaceError
from moe_router.experts.adapters import RoutedModel
from moe_router.experts.library import LOSSES, Library
from moe_router.experts.scoring import expert_scores
from moe_router.experts.train import Split
from moe_router.gate.fit import Measured
from moe_router.progress import Progress
from moe_router.workspace import Workspace, atomic, digest_json


@dataclass(frozen=True)
class Losses:
    """The cache of one library on one workspace's records; another library or other records make it empty."""

    path: Path
    key: str

    @classmethod
    def of(cls, workspace: Workspace, library: Library, slices: Slices) -> Losses:
        return cls(workspace.experts / LOSSES, digest_json([library.digest, slices.digest]))

    def read(self) -> dict[str, np.ndarray]:
        """`<split>.nats` (records, experts) and `<split>.tokens` (records,); nothing when missing, damaged or stale."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "numpy") as file:
                if (file.metadata() or {}).get("key") != self.key:
                    return {}
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError):
            return {}

    def add(self, split: str, nats: np.ndarray, tokens: np.ndarray) -> None:
        """Keep one more split."""
        from safetensors.numpy import save_file

        found = self.read() | {f"{split}.nats": nats, f"{split}.tokens": tokens}
        with atomic(self.path) as temporary:
            save_file(found, temporary, metadata={"key": self.key})


def measure(
    workspace: Workspace, library: Library, slices: Slices, split: str, model: RoutedModel, progress: Progress
) -> Measured:
    """Every expert's loss on a split, from the cache where it is there; records in the workspace's order."""
    chosen = Split.of(workspace, slices, split)
    cache = Losses.of(workspace, library, slices)
    if f"{split}.nats" not in cache.read():
        progress.stage(f"measure experts ({split} split)", len(library.names))
        found = expert_scores(
            model, chosen.records, template=library.template, max_tokens=library.max_tokens, progress=progress
        )
        _require_finite(found.nats, library)
        cache.add(split, found.nats, found.tokens)
    return _measured(cache, chosen, split)


def _require_finite(nats: np.ndarray, library: Library) -> None:
    broken = ~np.isfinite(nats).all(0)
    if broken.any():
        name = library.names[int(broken.argmax())]
        raise LibraryError(
            f"expert {name!r} gives losses that are not finite: remove it or run `moe-router train-experts` again"
        )


def load_losses(workspace: Workspace, split: str) -> Measured:
    """What `measure` kept of a split. Raises WorkspaceError when it was not measured on these experts and records."""
    library, slices = Library.load(workspace.experts), Slices.load(workspace)
    cache = Losses.of(workspace, library, slices)
    if f"{split}.nats" not in cache.read():
        raise WorkspaceError(f"{cache.path} has no losses of the {split} split for these experts: run `moe-router train-gate`")
    return _measured(cache, Split.of(workspace, slices, split), split)


def _measured(cache: Losses, chosen: Split, split: str) -> Measured:
    arrays = cache.read()
    return Measured(chosen.embeddings, arrays[f"{split}.nats"], arrays[f"{split}.tokens"])
