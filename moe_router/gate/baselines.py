"""Published and trivial gates on the same experts: each gives weights (queries, experts)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moe_router.gate.gate import keep_top, softmax

MIXING_TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)
CENTROID_TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2)


def cbtm(embeddings: np.ndarray, centroids: np.ndarray, temperature: float, k: int | None = 2) -> np.ndarray:
    """Softmax over centroid similarity, the k largest kept (c-BTM, Gururangan et al. 2023).

    *Shape:* embeddings (queries, dimension), centroids (experts, dimension).
    """
    return keep_top(softmax(embeddings @ centroids.T / temperature), k).astype(np.float32)


def nearest_neighbours(embeddings: np.ndarray, train: np.ndarray, labels: np.ndarray, experts: int, k: int = 16) -> np.ndarray:
    """Share of each slice among the k nearest training records (airoboros' LMoE).

    *Shape:* embeddings (queries, dimension), train (records, dimension), labels (records,) → (queries, experts).
    """
    similarity = embeddings @ train.T
    nearest = np.argpartition(-similarity, min(k, len(train)) - 1, axis=1)[:, :k]
    return np.eye(experts, dtype=np.float32)[labels[nearest]].mean(1)


def cluster_label(embeddings: np.ndarray, train: np.ndarray, labels: np.ndarray, experts: int) -> np.ndarray:
    """Probability of each slice under a logistic regression of the slice: what is fitted when losses are not measured.

    *Shape:* as `nearest_neighbours`.
    """
    weight, bias = slice_classifier(train, labels, experts, 10.0)
    return softmax(embeddings @ weight.T + bias).astype(np.float32)


def uniform(queries: int, experts: int) -> np.ndarray:
    """Every expert alike."""
    return np.full((queries, experts), 1 / experts, dtype=np.float32)


def random_gate(queries: int, experts: int, seed: int) -> np.ndarray:
    """One expert per query, drawn evenly: what specialised experts give without a gate."""
    return one_expert(np.random.default_rng(seed).integers(experts, size=queries), experts)


def shuffled(weights: np.ndarray, seed: int) -> np.ndarray:
    """A gate's own rows dealt to other queries: the same use of every expert, no knowledge of the query."""
    return weights[np.random.default_rng(seed).permutation(len(weights))]


def one_expert(choice: np.ndarray, experts: int) -> np.ndarray:
    """One expert per query, by index (queries,)."""
    return np.eye(experts, dtype=np.float32)[choice]


def oracle(nats: np.ndarray) -> np.ndarray:
    """The expert that turns out best for each query: a minimum over noisy experts, so it flatters."""
    return one_expert(nats.argmin(1), nats.shape[1])


def best_fixed(slices: np.ndarray, nats: np.ndarray, measured_slices: np.ndarray) -> np.ndarray:
    """For each slice the one expert with the lowest loss on measured records of it.

    *Shape:* slices (queries,), nats (measured, experts), measured_slices (measured,).
    """
    experts = nats.shape[1]
    own = [nats[measured_slices == s].sum(0).argmin() if (measured_slices == s).any() else s for s in range(experts)]
    return one_expert(np.array(own)[slices], experts)


def search_temperature(
    candidates: Sequence[float], weights_at: Callable[[float], np.ndarray], nats_of: Callable[[np.ndarray], float]
) -> tuple[float, dict[str, float]]:
    """The candidate whose weights lose least on the tune split; every gate gets this same search."""
    found = {f"{t:g}": float(nats_of(weights_at(t))) for t in candidates}
    return float(min(found, key=lambda t: found[t])), found


def slice_classifier(train: np.ndarray, labels: np.ndarray, experts: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression of the slice: weight (experts, dimension), bias (experts,)."""
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((experts, train.shape[1])), np.zeros(experts)
    present = np.unique(labels)
    if len(present) < 2:
        return weight, bias
    found = LogisticRegression(C=strength, max_iter=500).fit(train, labels)
    if len(present) == 2:  # scikit-learn keeps one row for two classes
        weight[present[1]], bias[present[1]] = found.coef_[0], found.intercept_[0]
        return weight, bias
    bias[:] = -1e3  # an expert without training records is never the prior's choice
    weight[present], bias[present] = found.coef_, found.intercept_
    return weight, bias
