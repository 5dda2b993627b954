"""The experts of the nearest training records: the router of airoboros' LMoE (github.com/jondurbin/airoboros)."""

from __future__ import annotations

import numpy as np


def nearest_neighbours(embeddings: np.ndarray, train: np.ndarray, labels: np.ndarray, experts: int, k: int = 16) -> np.ndarray:
    """Share of each slice among the k nearest training records (airoboros' LMoE).

    *Shape:* embeddings (queries, dimension), train (records, dimension), labels (records,) → (queries, experts).
    """
    similarity = embeddings @ train.T
    nearest = np.argpartition(-similarity, min(k, len(train)) - 1, axis=1)[:, :k]
    return np.eye(experts, dtype=np.float32)[labels[nearest]].mean(1)
