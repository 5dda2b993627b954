"""What the nearest training queries say of a query: which expert learned from them, and how near they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REMEMBERED = 4096
"""Most training queries kept."""
NEAREST = 3
"""How many of them the likeness is the mean of."""
BANDWIDTH = 0.05
"""In cosine similarity: a query this much further away has 1/e of the vote."""
FLOOR = 1e-3
"""Added to every expert's share of the votes, so that measured losses can overrule an expert without any."""


@dataclass(frozen=True, eq=False)
class Memory:
    """Training queries and the expert that each one trained."""

    queries: np.ndarray  # (remembered, dimension) float32, unit length
    owners: np.ndarray  # (remembered,) int64

    @classmethod
    def of(cls, queries: np.ndarray, owners: np.ndarray, seed: int) -> Memory:
        """At most REMEMBERED of the queries (records, dimension), drawn by seed; through float16, as they are stored."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(queries))[:REMEMBERED])
        return cls(queries[chosen].astype(np.float16).astype(np.float32), owners[chosen].astype(np.int64))

    def votes(self, embeddings: np.ndarray, experts: int) -> np.ndarray:
        """Logarithm of each expert's share among the remembered queries, near ones counting most (Nadaraya-Watson).

        Each fact is known to the expert whose records held it, and such places are too small for slice centroids or a
        linear map to tell apart. *Shape:* embeddings (queries, dimension) → (queries, experts) float64.
        """
        nearness = np.exp((embeddings @ self.queries.T - 1) / BANDWIDTH)  # (queries, remembered)
        counts = (nearness @ np.eye(experts, dtype=nearness.dtype)[self.owners]).astype(np.float64)
        return np.log(counts / counts.sum(1, keepdims=True) + FLOOR)

    def likeness(self, embeddings: np.ndarray) -> np.ndarray:
        """Mean cosine similarity to the nearest remembered queries (kNN score, Sun et al. 2022), -1 to 1.

        *Shape:* embeddings (queries, dimension) → (queries,).
        """
        count = min(NEAREST, len(self.queries))
        similarity = embeddings @ self.queries.T
        return np.partition(similarity, -count, axis=1)[:, -count:].mean(1).clip(-1, 1)
