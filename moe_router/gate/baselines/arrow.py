"""Prototypes read off the adapters themselves: Arrow (Ostapenko et al. 2024, arXiv:2405.11157).

An expert's prototype in a layer is the direction of input that its update B·A moves most, its first right singular vector. In
every layer every token chooses the experts whose prototypes it is most parallel to, whatever the sign, and mixes them by a
softmax; a shared expert stays on beside them. There is no gate, and nothing is learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from moe_router.experts.adapters import GatedLinear, RoutedModel

TOP = 2
TEMPERATURES = (0.1, 0.3, 1.0, 3.0)
"""Of the softmax over a token's experts."""


@dataclass(frozen=True)
class ArrowRoute:
    """A Mixing that chooses by token and layer."""

    prototypes: Mapping[int, torch.Tensor]
    """(experts, d_in) by the layer's index."""
    shared_rank: int
    ranks: torch.Tensor  # (experts,) int64
    scale: torch.Tensor  # (R,), LoRA scale of every slot
    temperature: float

    def output(self, layer: GatedLinear, x: torch.Tensor) -> torch.Tensor:
        """*Shape:* (rows, seq, d_in) → (rows, seq, d_out)."""
        hidden = F.linear(x, layer.A[:-1].to(x.dtype)) * self.gates(layer, x).to(x.dtype)
        return layer.base(x) + hidden @ layer.B[:-1].to(x.dtype)

    def gates(self, layer: GatedLinear, x: torch.Tensor) -> torch.Tensor:
        """Weight times scale of every slot: (rows, seq, d_in) → (rows, seq, R) fp32."""
        along = (x.float() @ self.prototypes[layer.index].T).abs()  # (rows, seq, experts)
        largest, place = along.topk(min(TOP, along.shape[-1]), dim=-1)
        weights = torch.zeros_like(along).scatter(-1, place, torch.softmax(largest / self.temperature, -1))
        always = x.new_ones((*x.shape[:-1], self.shared_rank), dtype=torch.float32)
        return torch.cat([always, weights.repeat_interleave(self.ranks, dim=-1)], -1) * self.scale


def arrow(model: RoutedModel, names: Sequence[str], temperature: float) -> ArrowRoute:
    """The route of every token, from the factors of the experts in a model's order."""
    device = model.base.device
    scale = model.gates(torch.ones(1, len(names)))[0].to(device)
    found = {model.layers[path].index: each.to(device) for path, each in prototypes(model, names).items()}
    return ArrowRoute(found, model.shared_rank, torch.tensor(model.expert_ranks, device=device), scale, temperature)


def prototypes(model: RoutedModel, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The experts' prototypes in every adapted layer: (experts, inputs), unit length, by the layer's path."""
    factors = [model.factors(name) for name in names]
    return {path: torch.stack([_first_direction(*each[path]) for each in factors]) for path in factors[0]}


def _first_direction(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """First right singular vector of the update, from its factors.

    *Shape:* a (rank, inputs), b (rank, outputs) → (inputs,).
    """
    basis, rest = torch.linalg.qr(a.detach().float().T)  # (inputs, rank), (rank, rank)
    _, _, directions = torch.linalg.svd(b.detach().float().T @ rest.T, full_matrices=False)
    return basis @ directions[0]
