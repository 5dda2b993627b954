"""Gates that know nothing of the query: controls."""

from __future__ import annotations

import numpy as np

from moe_router.gate.baselines.fixed import one_expert


def uniform(queries: int, experts: int) -> np.ndarray:
    """Every expert alike."""
    return np.full((queries, experts), 1 / experts, dtype=np.float32)


def random_gate(queries: int, experts: int, seed: int) -> np.ndarray:
    """One expert per query, drawn evenly: what specialised experts give without a gate."""
    return one_expert(np.random.default_rng(seed).integers(experts, size=queries), experts)


def shuffled(weights: np.ndarray, seed: int) -> np.ndarray:
    """A gate's own rows dealt to other queries: the same use of every expert, no knowledge of the query."""
    return weights[np.random.default_rng(seed).permutation(len(weights))]
