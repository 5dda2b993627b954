"""Softmax over the similarity to slice centroids: c-BTM (Gururangan et al. 2023, arXiv:2303.14177)."""

from __future__ import annotations

import numpy as np

from moe_router.gate.weights import keep_top, softmax

CENTROID_TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2)


def cbtm(embeddings: np.ndarray, centroids: np.ndarray, temperature: float, k: int | None = 2) -> np.ndarray:
    """Softmax over centroid similarity, the k largest kept (c-BTM, Gururangan et al. 2023).

    *Shape:* embeddings (queries, dimension), centroids (experts, dimension).
    """
    return keep_top(softmax(embeddings @ centroids.T / temperature), k).astype(np.float32)
