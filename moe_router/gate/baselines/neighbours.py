"""The experts of the nearest training records: the router of airoboros' LMoE (github.com/jondurbin/airoboros)."""

from __future__ import annotations

import numpy as np

from moe_router.data.clusters import nearest_shares


def nearest_neighbours(embeddings: np.ndarray, train: np.ndarray, labels: np.ndarray, experts: int, k: int = 16) -> np.ndarray:
    """Share of each slice among the k nearest training records (airoboros' LMoE).

    *Shape:* embeddings (queries, dimension), train (records, dimension), labels (records,) → (queries, experts).
    """
    return nearest_shares(embeddings, train, labels, experts, k)
