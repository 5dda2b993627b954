"""Fitting the gate to what each expert really gets right."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moe_router.gate.features import Memory
from moe_router.gate.gate import softmax

TARGET_TEMPERATURES = (0.03, 0.1, 0.3)
PENALTIES = (3.0, 0.3, 0.03)
"""Strongest first: of about equally good settings the one that trusts few records least is taken."""


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


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted gate without its calibration, and how it was chosen."""

    weight: np.ndarray  # (experts, dimension)
    bias: np.ndarray  # (experts,)
    evidence_scale: float
    memory: Memory
    chosen: dict[str, float | None] = field(default_factory=dict)
    tried: list[dict[str, float | None]] = field(default_factory=list)
    """Each setting with its loss on the tune split in nats per token; τ and penalty are None for the memory alone."""

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """*Shape:* embeddings (queries, dimension) → (queries, experts)."""
        evidence = self.memory.read(embeddings, len(self.bias)).evidence
        return embeddings @ self.weight.T + self.bias + self.evidence_scale * evidence


def fit_gate(memory: Memory, gate: Measured, tune: Measured) -> Fit:
    """Fit logits = s·evidence(x) + W·x + b to softmax(-loss/τ), records weighted by their target tokens.

    The evidence of training queries needs no measured loss, so a few hundred measured records have only to correct it.
    τ and the penalty on W and b are chosen by the loss of top-1 routing on `tune`; the memory alone is one of the choices,
    and is kept unless another is clearly better.
    """
    experts, dimension = gate.nats.shape[1], gate.embeddings.shape[1]
    alone = Fit(np.zeros((experts, dimension), np.float32), np.zeros(experts, np.float32), 1.0, memory)
    tried, fits, losses = [], [], []
    for tau, penalty in [(None, None), *itertools.product(TARGET_TEMPERATURES, PENALTIES)]:
        fits.append(alone if tau is None else _correct(memory, gate, tau, penalty))
        weights = softmax(fits[-1].logits(tune.embeddings))
        losses.append(tune.nats[np.arange(len(weights)), weights.argmax(1)])
        top1 = float(losses[-1].sum() / tune.tokens.sum())
        tried.append({"tau": tau, "penalty": penalty, "top1": top1, "expected": tune.nats_per_token(weights)})
    chosen = plainest(losses)
    return replace(fits[chosen], chosen=tried[chosen], tried=tried)


def plainest(losses: Sequence[np.ndarray]) -> int:
    """The first whose loss is within one standard error of the best's, paired by record: (records,) each, plainest first.

    The one-standard-error rule (Breiman et al. 1984): on a few hundred records the best of ten is mostly luck.
    """
    best = losses[int(np.argmin([each.sum() for each in losses]))]
    gaps = [each - best for each in losses]
    return next(i for i, gap in enumerate(gaps) if gap.sum() <= np.sqrt(len(gap)) * gap.std())


def _correct(memory: Memory, gate: Measured, tau: float, penalty: float) -> Fit:
    """Scale of the evidence and correction that best match the measured targets (L-BFGS, float64)."""
    import torch

    experts, dimension = gate.nats.shape[1], gate.embeddings.shape[1]
    x = torch.from_numpy(gate.embeddings.astype(np.float64))
    evidence = torch.from_numpy(memory.read(gate.embeddings, experts).evidence)
    target = torch.from_numpy(softmax(-gate.losses / tau))
    share = torch.from_numpy(gate.tokens / gate.tokens.sum())
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    weight = torch.zeros(experts, dimension, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(experts, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([scale, weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = scale * evidence + x @ weight.T + bias
        cross = -(target * torch.log_softmax(logits, 1)).sum(1)
        size = weight.square().sum() + bias.square().sum()
        loss = (share * cross).sum() + penalty * size / len(x) + 1e-3 * (scale - 1).square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return Fit(weight.detach().float().numpy(), bias.detach().float().numpy(), scale.item(), memory)
