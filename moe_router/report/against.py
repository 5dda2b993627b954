"""Two reports side by side: what changed from one run to another, arm by arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_router.errors import WorkspaceError
from moe_router.report.document import Report
from moe_router.report.perplexity import paired_difference
from moe_router.workspace import atomic

LOSSES = "losses.safetensors"
"""Beside report.json: nats of every arm on every test record, their tokens, and which records they were."""


@dataclass(frozen=True)
class Change:
    """One arm here and in the other report."""

    arm: str
    here: float
    """Perplexity."""
    there: float
    relative: float
    """here / there - 1: below 0, this report's is better."""
    flops: float
    """FLOPs per token here over there."""
    ci95: tuple[float, float] | None = None
    """Of `relative`, paired by record; None where the two were not measured on the same records."""
    p: float | None = None


@dataclass(frozen=True)
class Against:
    """This report against another."""

    other: str
    same_records: bool
    """Whether both were measured on the same test records; only then is a difference one between methods."""
    changes: tuple[Change, ...]
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For the terminal."""
        from moe_router.report.terminal import against_lines

        return against_lines(self)


def against(report: Report, folder: Path, other: Path, resamples: int = 1000, seed: int = 0) -> Against:
    """Compare `report`, which lies in `folder`, with the report.json at `other`.

    Raises WorkspaceError when the other is missing or damaged.
    """
    there = Report.load(other)
    digests = [found.environment.get("test_digest") for found in (report, there)]
    same = digests[0] is not None and digests[0] == digests[1]
    losses = [load_losses(place / LOSSES, digests[0]) if same else {} for place in (folder, other.parent)]
    changes = []
    for arm in report.arms:
        rival = there.arm(arm.id)
        if rival is None:
            continue
        paired = {}
        if all(arm.id in part for part in losses):
            tokens = losses[0]["tokens"]
            found = paired_difference(losses[0][arm.id], losses[1][arm.id], tokens, resamples, seed)
            paired = {"ci95": tuple(found.ci95), "p": found.p}
        relative, flops = arm.perplexity / rival.perplexity - 1, arm.flops_per_token / rival.flops_per_token
        changes.append(Change(arm.id, arm.perplexity, rival.perplexity, relative, flops, **paired))
    here, others = [arm.id for arm in report.arms], [arm.id for arm in there.arms]
    only = [tuple(name for name in some if name not in rest) for some, rest in ((here, others), (others, here))]
    return Against(str(other), same, tuple(changes), *only)


def save_losses(path: Path, losses: Mapping[str, np.ndarray], tokens: np.ndarray, digest: str) -> None:
    """Keep every arm's nats (records,) and the tokens (records,) of the test records that `digest` names."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(nats, dtype=np.float64) for name, nats in losses.items()}
    with atomic(path) as temporary:
        save_file(arrays | {"tokens": tokens.astype(np.float64)}, temporary, metadata={"test_digest": digest})


def load_losses(path: Path, digest: str) -> dict[str, np.ndarray]:
    """What `save_losses` wrote; nothing where the file is missing or of other records. Raises WorkspaceError for damage."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return {}
    try:
        with safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("test_digest") != digest:
                return {}
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise WorkspaceError(f"{path} is damaged ({error}): delete it, and the report compares without intervals") from error
