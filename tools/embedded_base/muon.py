"""Muon: momentum whose matrices are orthogonalised before they are applied.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale that lets it share AdamW's rate and
weight decay is from Liu et al., "Muon is scalable for LLM training" (2025). `torch.optim.Muon` is the same method one matrix
at a time; a small model has many small matrices of few shapes, so those of one shape are orthogonalised in one batch here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton–Schulz step."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """(count, rows, columns) -> the same shape, singular values of each near 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for 2-D parameters."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                self._update(group, shape, parameters)

    def _update(self, group: dict, shape: torch.Size, parameters: list[Tensor]) -> None:
        buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
        gradients = [p.grad for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
        scale = 0.2 * max(shape) ** 0.5
        changes = orthogonalise(torch.stack(updates)).to(parameters[0].dtype).mul_(scale)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(changes.unbind()), alpha=-group["lr"])
