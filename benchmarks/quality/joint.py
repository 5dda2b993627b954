"""Trains all experts of a mixture together under any row weights: one optimiser, a learning rate of its own per slot.

The product's trainer gives every expert its own optimiser and takes one-hot rows. Experiments also want rows that train two
experts at once, and many short runs side by side on one GPU; here all factors lie in one flat buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from moe_router.experts.adapters import SHARED, RankLayout, RoutedModel
from moe_router.experts.base import Base
from moe_router.experts.encode import IGNORE, Example, collate
from moe_router.experts.scoring import target_logits

BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Shape:
    """Ranks and rates of a mixture; one expert alone with `shared` 0 is a dense adapter."""

    experts: int
    rank: int
    shared: int
    rate: float
    shared_rate: float


class Joint:
    """A mixture in training."""

    def __init__(self, base: Base, shape: Shape, alpha: float = 16.0, seed: int = 0) -> None:
        names = tuple(f"expert{i}" for i in range(shape.experts))
        layout = RankLayout(names, (shape.rank,) * shape.experts, shape.shared)
        scales = dict.fromkeys(names, alpha / shape.rank) | {SHARED: alpha / max(shape.shared, 1)}
        self.base = base
        self.model = RoutedModel(base, layout, scales, dtype=torch.float32)
        self.rates = torch.zeros(layout.total + 1)
        self.rates[: shape.shared] = shape.shared_rate
        self.rates[shape.shared : -1] = shape.rate
        self.owner = torch.full((layout.total + 1,), -2)  # of each slot: -1 shared, else the expert
        for index, name in enumerate(names):
            self.owner[layout.slots[name]] = index
        self.owner[: shape.shared] = -1
        self._flatten(seed)

    def _flatten(self, seed: int) -> None:
        """All factors in one buffer with one gradient buffer; `slot` names the slot of every element."""
        draw = torch.Generator().manual_seed(seed)
        pieces, slots, self.views = [], [], []
        for layer in self.model.layers.values():
            bound = layer.A.shape[1] ** -0.5
            a = torch.empty(layer.A.shape).uniform_(-bound, bound, generator=draw)
            a[-1] = 0
            for parameter, value in ((layer.A, a), (layer.B, torch.zeros(layer.B.shape))):
                self.views.append(parameter)
                pieces.append(value.flatten())
                slots.append(torch.arange(len(value)).repeat_interleave(value.shape[1]))
        device = self.base.device
        self.flat, self.slot = torch.cat(pieces).to(device), torch.cat(slots).to(device)
        self.grad, self.m, self.v = (torch.zeros_like(self.flat) for _ in range(3))
        self.steps = torch.zeros(len(self.rates), device=device)
        at = 0
        for parameter in self.views:
            end = at + parameter.numel()
            parameter.data = self.flat[at:end].view(parameter.shape)
            parameter.grad = self.grad[at:end].view(parameter.shape)
            at = end

    def step(self, examples: Sequence[Example], weights: np.ndarray, share: float) -> torch.Tensor:
        """One update on one example a row; `weights` (rows, experts), `share` of the peak rates. Returns the mean loss."""
        batch = collate([[example] for example in examples], self.base.eos, self.base.device)
        mask = batch.labels != IGNORE
        with self.model.routed(self.model.route(weights)):
            logits = target_logits(self.base.model, batch)
            loss = F.cross_entropy(logits, batch.labels[mask])
            loss.backward()
        used = torch.from_numpy((weights != 0).any(0))
        active = torch.cat([used, torch.tensor([True, False])])[self.owner]  # -1 is the shared expert, -2 the null slot
        active[self.owner == -1] = True
        active[-1] = False
        self._adam((self.rates * share * active).to(self.grad.device), active.to(self.grad.device))
        return loss.detach()

    @torch.no_grad()
    def _adam(self, rates: torch.Tensor, active: torch.Tensor) -> None:
        """Adam in which a slot without a row in the batch stands still."""
        self.steps += active
        on = active.float()
        first, second = (1 - (1 - beta) * on for beta in BETAS)
        self.m.mul_(first[self.slot]).add_(self.grad * ((1 - BETAS[0]) * on)[self.slot])
        self.v.mul_(second[self.slot]).add_(self.grad.square() * ((1 - BETAS[1]) * on)[self.slot])
        size = rates * on / (1 - BETAS[0] ** self.steps).clamp_min(1e-8)
        root = (self.v / (1 - BETAS[1] ** self.steps).clamp_min(1e-8)[self.slot]).sqrt_()
        self.flat.sub_(size[self.slot] * self.m / (root + 1e-8))
        self.grad.zero_()
