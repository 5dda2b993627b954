"""Fitting the gate to what each expert really gets right."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from moe_router.gate.gate import softmax

PRIOR_STRENGTHS = (10.0, 100.0)
TARGET_TEMPERATURES = (0.03, 0.1, 0.3)
PENALTIES = (0.003, 0.03, 0.3, 3.0)


@dataclass(frozen=True)
class Measured:
    """Queries of one split with the loss of every expert on their responses."""

    embeddings: np.ndarray  # (records, dimension)
    nats: np.ndarray  # (records, experts), summed over the response
    tokens: np.ndarray  # (records,)

    @property
    def losses(self) -> np.ndarray:
        """Mean nats per response token: (records, experts)."""
        return self.nats / self.tokens[:, None]

    def only(self, chosen: np.ndarray) -> Measured:
        """The records picked by a mask or by index (records,)."""
        return Measured(self.embeddings[chosen], self.nats[chosen], self.tokens[chosen])

    def nats_per_token(self, weights: np.ndarray) -> float:
        """Expected loss if one expert were drawn by `weights` (records, experts): exact for one-hot rows, else a proxy."""
        return float((weights * self.nats).sum() / self.tokens.sum())


@dataclass(frozen=True)
class Fit:
    """A fitted linear gate and how it was chosen."""

    weight: np.ndarray  # (experts, dimension)
    bias: np.ndarray  # (experts,)
    chosen: dict[str, float | None]
    tried: list[dict[str, float | None]]
    """Each setting with its loss on the tune split in nats per token; τ and penalty are None for the prior alone."""


def fit_gate(train: np.ndarray, labels: np.ndarray, gate: Measured, tune: Measured) -> Fit:
    """Fit logits = s·prior(x) + W·x + b to softmax(-loss/τ), records weighted by their target tokens.

    The prior is a logistic regression on the training records' slices (on synthetic slices it did as well as centroid
    similarity or better), so that a few hundred measured records need only correct it. Prior strength, τ and the
    penalty on W and b are chosen by the loss of top-1 routing on `tune`, the prior alone being one of the choices.

    *Shape:* train (records, dimension), labels (records,).
    """
    experts = gate.nats.shape[1]
    tried, best = [], None
    corrections = [(None, None), *itertools.product(TARGET_TEMPERATURES, PENALTIES)]
    for strength in PRIOR_STRENGTHS:
        prior = slice_classifier(train, labels, experts, strength)
        for tau, penalty in corrections:
            weight, bias = prior if tau is None else _correct(prior, gate, tau, penalty)
            weights = softmax(tune.embeddings @ weight.T + bias)
            top1 = tune.nats_per_token(np.eye(experts)[weights.argmax(1)])
            expected = tune.nats_per_token(weights)
            tried.append({"prior": strength, "tau": tau, "penalty": penalty, "top1": top1, "expected": expected})
            if best is None or (top1, expected) < best[0]:
                best = (top1, expected), weight, bias, tried[-1]
    _, weight, bias, chosen = best
    return Fit(weight.astype(np.float32), bias.astype(np.float32), chosen, tried)


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


def _correct(prior: tuple[np.ndarray, np.ndarray], gate: Measured, tau: float, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale of the prior and correction that best match the measured targets (L-BFGS, float64)."""
    import torch

    x = torch.from_numpy(gate.embeddings.astype(np.float64))
    start = torch.from_numpy(gate.embeddings.astype(np.float64) @ prior[0].T + prior[1])
    target = torch.from_numpy(softmax(-gate.losses / tau))
    share = torch.from_numpy(gate.tokens / gate.tokens.sum())
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    weight = torch.zeros(prior[0].shape, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(prior[1]), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([scale, weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = scale * start + x @ weight.T + bias
        cross = -(target * torch.log_softmax(logits, 1)).sum(1)
        size = weight.square().sum() + bias.square().sum()
        loss = (share * cross).sum() + penalty * size / len(x) + 1e-3 * (scale - 1).square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    s = scale.item()
    return s * prior[0] + weight.detach().numpy(), s * prior[1] + bias.detach().numpy()
