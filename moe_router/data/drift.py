"""How far records that came later are from those that the slices were made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_router.data.cells import REACH, Cells
from moe_router.data.clusters import centroids

OUTSIDE = 3 * REACH
SPREAD = 0.3
"""Drift is high where more than OUTSIDE of the new records lie beyond the cells' reach, or their spread exceeds this."""


@dataclass(frozen=True)
class Drift:
    """Training records that came after the slices were made, against those of the making."""

    new: int = 0
    """Training records that came later."""
    outside: float = 0.0
    """Share of them that lie beyond the reach of their cell: 5 % where nothing has changed."""
    spread: float = 0.0
    """Jensen-Shannon distance (base 2) between their shares of the slices and the first ones': 0 alike, 1 disjoint."""
    moved: tuple[float, ...] = ()
    """Of each slice, 1 − cosine between where its records lay then and lie now."""

    @property
    def high(self) -> bool:
        """Whether slicing anew is worth a thought."""
        return self.new > 0 and (self.outside > OUTSIDE or self.spread > SPREAD)

    @classmethod
    def load(cls, stored: dict[str, Any]) -> Drift:
        return cls(**{**stored, "moved": tuple(stored["moved"])})


def measure_drift(cells: Cells, slice_of: np.ndarray, embeddings: np.ndarray, assigned: np.ndarray, later: np.ndarray) -> Drift:
    """Drift of training records, `later` being true of those that came after the cells were made.

    *Shape:* slice_of (cells,), embeddings (n, dimension), assigned (n,) cells, later (n,) bool.
    """
    slices = int(slice_of.max()) + 1
    if not later.any():
        return Drift(moved=(0.0,) * slices)
    inside = np.einsum("nd,nd->n", embeddings[later], cells.centers[assigned[later]])
    then = np.bincount(slice_of, weights=cells.sizes, minlength=slices)
    now = np.bincount(slice_of[assigned[later]], minlength=slices)
    before = centroids(cells.centers * np.array(cells.sizes)[:, None], slice_of, slices)
    after = centroids(embeddings, slice_of[assigned], slices)
    return Drift(
        new=int(later.sum()),
        outside=float((inside < cells.reach[assigned[later]]).mean()),
        spread=_jensen_shannon(then / then.sum(), now / now.sum()),
        moved=tuple(np.round(1 - (before * after).sum(1), 4).tolist()),
    )


def _jensen_shannon(one: np.ndarray, other: np.ndarray) -> float:
    """Square root of the divergence (Lin 1991), in base 2. *Shape:* two distributions (slices,)."""
    middle = (one + other) / 2

    def divergence(share: np.ndarray) -> float:
        held = share > 0
        return float((share[held] * np.log2(share[held] / middle[held])).sum())

    return float(np.sqrt(max(0.0, (divergence(one) + divergence(other)) / 2)))
