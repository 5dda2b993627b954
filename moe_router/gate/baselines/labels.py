"""A classifier of the slice: what is fitted where no losses are measured (scikit-learn's LogisticRegression)."""

from __future__ import annotations

import numpy as np

from moe_router.gate.weights import softmax


def cluster_label(embeddings: np.ndarray, train: np.ndarray, labels: np.ndarray, experts: int) -> np.ndarray:
    """Probability of each slice under a logistic regression of the slice: what is fitted when losses are not measured.

    *Shape:* as `nearest_neighbours`.
    """
    weight, bias = slice_classifier(train, labels, experts, 10.0)
    return softmax(embeddings @ weight.T + bias).astype(np.float32)


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
