"""Balanced clustering of embeddings."""

from __future__ import annotations

import numpy as np

from moe_router.config import SliceConfig

ROUNDS = 20
STARTS = 4
"""Starts of k-means, of which the best is balanced."""
SHARED_DIRECTIONS = 2


def subjects(prompts: np.ndarray, responses: np.ndarray, k: int) -> np.ndarray:
    """What records are about, with how they are worded taken out: the space that slices are found in.

    Prompt and response both say what a record is about. The mean and the strongest directions of their embeddings hold
    what texts of any subject share, such as asking for an amount (all-but-the-top, Mu & Viswanath 2018). As k clusters
    spread over k − 1 directions, at most a third of these are given up.
    *Shape:* (records, dimension) twice → (records, dimension), unit length.
    """
    both = unit(prompts + responses)
    both = both - both.mean(0)
    shared = min(SHARED_DIRECTIONS, (k - 1) // 3)
    if shared:
        directions = np.linalg.svd(both, full_matrices=False)[2][:shared]  # (shared, dimension)
        both = both - both @ directions.T @ directions
    return unit(both)


def balanced_kmeans(points: np.ndarray, settings: SliceConfig) -> np.ndarray:
    """Spherical k-means in which no cluster holds more than `max_ratio` times the mean, by `settings.seed`.

    Starts from scikit-learn's KMeans, then takes turns between an assignment under that capacity and new centroids.
    *Shape:* points (n, dimension) → labels (n,) int64.
    """
    from sklearn.cluster import KMeans

    labels = KMeans(settings.k, n_init=STARTS, random_state=settings.seed).fit(points).labels_
    capacity = int(np.ceil(settings.max_ratio * len(points) / settings.k))
    for _ in range(ROUNDS):
        moved = assign_with_capacity(points @ centroids(points, labels, settings.k).T, capacity)
        if (moved == labels).all():
            break
        labels = moved
    return labels.astype(np.int64)


def assign_with_capacity(similarity: np.ndarray, capacity: int) -> np.ndarray:
    """Each point to its most similar cluster that has room; the points with most to lose choose first.

    `capacity` is a number of points, with room for all of them over all clusters. *Shape:* similarity (n, k) → labels (n,).
    """
    ranked = -np.sort(-similarity, axis=1)
    regret = ranked[:, 0] - ranked[:, 1:2].sum(1)  # of one cluster alone there is no second
    labels = np.empty(len(similarity), dtype=np.int64)
    room = np.full(similarity.shape[1], capacity)
    for point in np.argsort(-regret, kind="stable"):
        label = int(np.where(room > 0, similarity[point], -np.inf).argmax())
        labels[point] = label
        room[label] -= 1
    return labels


def centroids(points: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Mean directions; zero where a cluster is empty. *Shape:* (n, dimension), (n,) → (k, dimension) float32."""
    return unit(np.stack([points[labels == label].sum(0) for label in range(k)]))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows brought to unit length, zeros left as they are. *Shape:* (n, dimension) → same, float32."""
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
