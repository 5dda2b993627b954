"""What the training queries say of a query: which expert learned such things, and whether any did.

Kernel ridge regression from prototypes of the training queries (subset of regressors, Smola & Schölkopf 2000), found by
k-means within each expert's own (Nyström prototypes, Zhang et al. 2008). Its targets are pockets: groups of like queries
among one expert's, by k-means too. A pocket's claim is near 1 where a query is like the pocket's and near 0 elsewhere. The
claims of an expert's pockets together say how much of a query is the expert's; the largest claim of all, and how near the
nearest prototype is, say whether the query is like anything known. Pockets are the targets, and not experts, because an
expert's queries are many separate places: what lies between two of them is like neither. The number of each was chosen on
in-scope training queries of CLINC150 (benchmarks/gate_clinc.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

REMEMBERED = 2048
"""Most prototypes kept."""
POCKETS = 15
"""Most pockets of one expert."""
POCKET_QUERIES = 8
"""Fewest training queries of a pocket, on average."""
BANDWIDTH = 0.3
"""In cosine similarity: a prototype this much further away counts 1/e."""
RIDGE = 0.01
SOFTNESS = 0.05
"""Claims below this stop counting against an expert: measured losses can overrule any claim."""
LEARNED = 16_384
"""Most training queries that are learned from."""
NOBODY = -1
"""Owner of queries that no expert should answer."""


@dataclass(frozen=True)
class Reading:
    """What a memory says of a batch of queries."""

    evidence: np.ndarray
    """(queries, experts) float64, logarithm of each expert's claim."""
    claim: np.ndarray
    """(queries,) float64, the largest claim of any pocket."""
    nearest: np.ndarray
    """(queries,) float64, cosine similarity to the nearest prototype."""

    @property
    def likeness(self) -> np.ndarray:
        """(queries,) about 1 for a training query, 0 for what is like none: the claim, as far as anything is near."""
        return np.maximum(self.claim, 0) * np.maximum(self.nearest, 0)


@dataclass(frozen=True, eq=False)
class Memory:
    """Prototypes of the training queries, whose they are, and the claims fitted from them."""

    queries: np.ndarray  # (prototypes, dimension) float32, unit length
    owners: np.ndarray  # (prototypes,) int64, an expert or NOBODY
    coefficients: np.ndarray  # (prototypes, pockets) float32
    pockets: np.ndarray  # (pockets,) int64, the expert of each

    @classmethod
    def of(cls, queries: np.ndarray, owners: np.ndarray, seed: int, pockets: int = POCKETS) -> Memory:
        """Learn queries (records, dimension) of unit length and their owners (records,), an expert or NOBODY each.

        `pockets` is the most that one expert gets.
        """
        chosen = np.sort(np.random.default_rng(seed).permutation(len(queries))[:LEARNED])
        queries, owners = queries[chosen], owners[chosen].astype(np.int64)
        prototypes, whose = _prototypes(queries, owners, REMEMBERED / len(queries), seed)
        groups, experts = _pockets(queries, owners, pockets, seed)
        return cls(prototypes, whose, _solve(queries, prototypes, _one_hot(groups, len(experts))), experts)

    def read(self, embeddings: np.ndarray, experts: int, permitted: np.ndarray | None = None) -> Reading:
        """`permitted` (experts,) says whose pockets and prototypes make a query known; without it all do.

        *Shape:* embeddings (queries, dimension).
        """
        permitted = np.ones(experts, dtype=bool) if permitted is None else permitted
        similarity = _product(embeddings, self.queries.T)  # (queries, prototypes)
        claims = _product(_kernel(similarity), self.coefficients).astype(np.float64)  # (queries, pockets)
        together = claims @ _one_hot(self.pockets, experts)
        known = (self.owners != NOBODY) & permitted[self.owners]
        return Reading(
            evidence=np.log(np.logaddexp(0, together / SOFTNESS) * SOFTNESS),
            claim=claims.max(1, where=permitted[self.pockets], initial=0.0),
            nearest=similarity.max(1, where=known, initial=0.0).astype(np.float64),
        )

    def with_expert(self, queries: np.ndarray, expert: int, seed: int) -> Memory:
        """A copy that also knows `queries` (records, dimension) as an expert's; every other claim stays what it is.

        The other claims do not look at the new prototypes, and the new claims learn to leave the old prototypes alone.
        """
        prototypes, owners = _prototypes(queries, np.full(len(queries), expert), REMEMBERED / len(queries), seed)
        groups, pockets = _pockets(queries, np.full(len(queries), expert), POCKETS, seed)
        together = np.concatenate([self.queries, prototypes])
        targets = np.concatenate([np.zeros((len(self.queries), len(pockets))), _one_hot(groups, len(pockets))])
        added = _solve(np.concatenate([self.queries, queries]), together, targets)
        unmoved = np.zeros((len(prototypes), len(self.pockets)), dtype=np.float32)
        return Memory(
            queries=together,
            owners=np.concatenate([self.owners, owners]),
            coefficients=np.concatenate([np.concatenate([self.coefficients, unmoved]), added], axis=1),
            pockets=np.concatenate([self.pockets, pockets]),
        )

    def without_expert(self, expert: int) -> Memory:
        """A copy without an expert's claims, later experts moved up by one; every other claim stays what it is.

        The expert's prototypes stay as nobody's, since the other claims are made of all prototypes.
        """
        kept = self.pockets != expert
        pockets = self.pockets[kept]
        return replace(
            self,
            owners=np.where(self.owners == expert, NOBODY, self.owners - (self.owners > expert)),
            coefficients=self.coefficients[:, kept],
            pockets=pockets - (pockets > expert),
        )


def _product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Matrix product by torch's threads, which the embedder uses too.

    Numpy's own threads wait busily after a product, and on two cores take half of the processor from the next embedding.
    """
    import torch

    return (torch.from_numpy(np.ascontiguousarray(first)) @ torch.from_numpy(second)).numpy()


def _kernel(similarity: np.ndarray) -> np.ndarray:
    """Gaussian kernel of unit vectors, from their cosine similarity (n, m) float32: same."""
    return np.exp((similarity - 1) * np.float32(1 / BANDWIDTH))


def _solve(queries: np.ndarray, prototypes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Ridge regression with the kernel's own norm as penalty.

    *Shape:* queries (n, dimension), prototypes (m, dimension), targets (n, pockets) → (m, pockets) float32.
    """
    seen = _kernel(queries @ prototypes.T).astype(np.float64)
    gram = seen.T @ seen + RIDGE * _kernel(prototypes @ prototypes.T).astype(np.float64)
    gram[np.diag_indices_from(gram)] += 1e-6  # equal prototypes would make it singular
    return np.linalg.solve(gram, seen.T @ targets).astype(np.float32)


def _prototypes(queries: np.ndarray, owners: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At most a share of each owner's queries, as mean directions of groups, and their owners.

    Through float16, as they are stored. *Shape:* (n, dimension), (n,) → (m, dimension) float32, (m,).
    """
    found, whose = [], []
    for owner in np.unique(owners):
        own = np.unique(queries[owners == owner], axis=0)
        count = max(1, int(share * (owners == owner).sum()))
        if count < len(own):
            labels = _groups(own, count, seed)
            sums = np.zeros((count, own.shape[1]), dtype=np.float32)
            np.add.at(sums, labels, own)
            own = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        found.append(own)
        whose += [owner] * len(own)
    return np.concatenate(found).astype(np.float16).astype(np.float32), np.array(whose, dtype=np.int64)


def _pockets(queries: np.ndarray, owners: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The pocket of each query, NOBODY for nobody's, and the expert of each pocket: (n,), (pockets,)."""
    groups, pockets = np.full(len(queries), NOBODY), []
    for owner in np.unique(owners[owners != NOBODY]):
        own = owners == owner
        count = min(most, max(1, own.sum() // POCKET_QUERIES), len(np.unique(queries[own], axis=0)))
        groups[own] = _groups(queries[own], count, seed) + len(pockets)
        pockets += [owner] * count
    return groups, np.array(pockets, dtype=np.int64)


def _groups(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-means labels of points (n, dimension): (n,)."""
    from sklearn.cluster import KMeans

    if count == 1:
        return np.zeros(len(points), dtype=np.int64)
    return KMeans(count, n_init=1, max_iter=20, random_state=seed).fit(points).labels_


def _one_hot(groups: np.ndarray, count: int) -> np.ndarray:
    """Rows of 0 with a 1 at the group, none for NOBODY: (n,) → (n, count) float64."""
    return (groups[:, None] == np.arange(count)).astype(np.float64)
