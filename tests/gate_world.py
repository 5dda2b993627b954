"""A synthetic world for the gate: slices on the sphere, where some sub-slices are best answered by another expert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_router.gate.fit import Measured

EXPERTS, PARTS, DIMENSION = 8, 2, 64


@dataclass(frozen=True)
class Queries:
    """Drawn records with the slice each came from and the expert that is truly best for it."""

    measured: Measured
    slices: np.ndarray  # (records,)
    best: np.ndarray  # (records,)

    @property
    def embeddings(self) -> np.ndarray:
        return self.measured.embeddings


class World:
    """Slices made of parts; the second part of every other slice belongs to the next expert."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        slices = unit(self.random.normal(size=(EXPERTS, 1, DIMENSION)))
        self.parts = unit(slices + 0.7 * unit(self.random.normal(size=(EXPERTS, PARTS, DIMENSION))))
        own = np.arange(EXPERTS)
        self.best = np.stack([own, np.where(own % 2 == 0, (own + 1) % EXPERTS, own)], 1)  # (slices, parts)

    def draw(self, count: int) -> Queries:
        slices, parts = self.random.integers(EXPERTS, size=count), self.random.integers(PARTS, size=count)
        x = unit(self.parts[slices, parts] + 0.6 * unit(self.random.normal(size=(count, DIMENSION)))).astype(np.float32)
        best, tokens = self.best[slices, parts], self.random.integers(5, 40, size=count)
        gap = np.full((count, EXPERTS), 0.6)
        gap[np.arange(count), slices] = 0.2
        gap[np.arange(count), best] = 0.0
        losses = 1.5 + gap + 0.1 * self.random.normal(size=gap.shape) + 0.3 * self.random.normal(size=(count, 1))
        return Queries(Measured(x, np.maximum(losses, 0.01) * tokens[:, None], tokens), slices, best)

    def foreign(self, count: int) -> np.ndarray:
        """Queries about nothing that any slice holds."""
        return unit(self.random.normal(size=(count, DIMENSION))).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def centroids(queries: Queries) -> np.ndarray:
    return unit(np.stack([queries.embeddings[queries.slices == s].mean(0) for s in range(EXPERTS)]))
