"""Balanced clustering of embeddings."""

from __future__ import annotations

import numpy as np

from moe_router.config import SliceConfig

ROUNDS = 20
STARTS = 4
"""Starts of k-means, of which the best is balanced."""
FITTED = 20_000
"""Points that k-means itself sees; the rest join the nearest of its clusters before all are balanced."""
NEIGHBOURS = 10
"""Points that k-means sees the mean of in place of each, itself included."""
_PART = 4
"""A neighbourhood is at most one of so many parts of a cluster of mean size."""
SHARED_DIRECTIONS = 2
_SEARCHED = 256
"""Points whose neighbours are looked for at once."""
_ROWS = 1 << 16
"""Rows that are worked on at once where a copy of all would double the memory."""


def most_shared(k: int) -> int:
    """Directions that k clusters can spare: they spread over k − 1, and at most a third of these are given up."""
    return min(SHARED_DIRECTIONS, (k - 1) // 3)


def subjects(prompts: np.ndarray, responses: np.ndarray, k: int, shared: int | None = None) -> np.ndarray:
    """What records are about, with how they are worded taken out: the space that slices are found in.

    Prompt and response both say what a record is about. The mean and the `shared` strongest directions of their embeddings
    hold what texts of any subject share, such as asking for an amount (all-but-the-top, Mu & Viswanath 2018); without a
    number, as many as k clusters can spare.
    *Shape:* (records, dimension) twice → (records, dimension), unit length.
    """
    both = _to_unit(prompts + responses)
    both -= both.mean(0)
    shared = most_shared(k) if shared is None else shared
    if shared:
        directions = np.linalg.eigh(both.T @ both)[1][:, ::-1][:, :shared]  # (dimension, shared)
        for direction in directions.T:
            for start in range(0, len(both), _ROWS):
                part = both[start : start + _ROWS]
                part -= np.outer(part @ direction, direction)
    return _to_unit(both)


def balanced_kmeans(points: np.ndarray, settings: SliceConfig) -> np.ndarray:
    """Spherical k-means in which no cluster holds more than `max_ratio` times the mean, by `settings.seed`.

    Starts from scikit-learn's KMeans on the points' neighbourhoods (`averaged`), then takes turns between an assignment of
    the points under that capacity and new centroids.
    *Shape:* points (n, dimension) → labels (n,) int64.
    """
    from sklearn.cluster import KMeans

    drawn = points
    if len(points) > FITTED:
        drawn = points[np.sort(np.random.default_rng(settings.seed).choice(len(points), FITTED, replace=False))]
    seen = averaged(drawn, min(NEIGHBOURS, len(drawn) // (_PART * settings.k)))
    labels = KMeans(settings.k, n_init=STARTS, random_state=settings.seed).fit(seen).predict(points)
    capacity = int(np.ceil(settings.max_ratio * len(points) / settings.k))
    for _ in range(ROUNDS):
        moved = assign_with_capacity(points @ centroids(points, labels, settings.k).T, capacity)
        if (moved == labels).all():
            break
        labels = moved
    return labels.astype(np.int64)


def averaged(points: np.ndarray, count: int) -> np.ndarray:
    """Each point as the mean direction of the `count` nearest ones, itself among them.

    What a text happens to say is lost, and what its neighbours say too stays: one step of blurring mean shift (Fukunaga &
    Hostetler 1975). *Shape:* points (n, dimension), unit length → same.
    """
    if count < 2:
        return points
    made = np.empty_like(points)
    for start in range(0, len(points), _SEARCHED):
        near = points[start : start + _SEARCHED] @ points.T  # (some, n)
        nearest = np.argpartition(-near, count - 1, axis=1)[:, :count]
        made[start : start + _SEARCHED] = points[nearest].sum(1)
    return _to_unit(made)


def assign_with_capacity(similarity: np.ndarray, capacity: int) -> np.ndarray:
    """Each point to its most similar cluster that has room; the points with most to lose choose first.

    `capacity` is a number of points, with room for all of them over all clusters. *Shape:* similarity (n, k) → labels (n,).
    """
    nearest = similarity.argmax(1)
    if np.bincount(nearest).max(initial=0) <= capacity:
        return nearest
    ranked = -np.sort(-similarity, axis=1)
    regret = ranked[:, 0] - ranked[:, 1:2].sum(1)  # of one cluster alone there is no second
    labels = np.empty(len(similarity), dtype=np.int64)
    room = np.full(similarity.shape[1], capacity)
    for point in np.argsort(-regret, kind="stable"):
        label = int(np.where(room > 0, similarity[point], -np.inf).argmax())
        labels[point] = label
        room[label] -= 1
    return labels


def nearest_shares(points: np.ndarray, known: np.ndarray, labels: np.ndarray, groups: int, count: int) -> np.ndarray:
    """Share of each group among the `count` known points nearest to each point, some points at a time.

    *Shape:* points (n, dimension), known (m, dimension), labels (m,) → (n, groups) float32.
    """
    found = np.zeros((len(points), groups), dtype=np.float32)
    for at in range(0, len(points), _SEARCHED):
        similarity = points[at : at + _SEARCHED] @ known.T
        nearest = np.argpartition(-similarity, min(count, len(known)) - 1, axis=1)[:, :count]
        found[at : at + _SEARCHED] = np.eye(groups, dtype=np.float32)[labels[nearest]].mean(1)
    return found


def centroids(points: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Mean directions; zero where a cluster is empty. *Shape:* (n, dimension), (n,) → (k, dimension) float32."""
    return unit(np.stack([points[labels == label].sum(0) for label in range(k)]))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows brought to unit length, zeros left as they are. *Shape:* (n, dimension) → same, float32."""
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _to_unit(vectors: np.ndarray) -> np.ndarray:
    """`unit` in place, for arrays that nobody else holds."""
    for start in range(0, len(vectors), _ROWS):
        vectors[start : start + _ROWS] = unit(vectors[start : start + _ROWS])
    return vectors
