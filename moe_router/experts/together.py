"""All experts' adapters and the base's products in one differentiable function, for training on a GPU.

Layers that read the same input (q, k, v; gate, up) share one product with their A factors; B's products are added into
the base's output in place, and on the way back all gradients of the input add up in one tensor. All slots are multiplied
and gated by weight, without the masks of `adapters.wide`: one factor that is not finite breaks every row. The trainer
then repeats the step in the gathered form, where only the row at fault breaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moe_router.experts import bnb
from moe_router.experts.adapters import GatedLinear, RoutedModel

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one parent that most architectures give the same input; checked again at every pass."""


def siblings(paths: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Module paths in order, those that read the same input together."""
    left = dict.fromkeys(paths)
    for path in paths:
        parent, dot, name = path.rpartition(".")
        together = next((tuple(f"{parent}{dot}{n}" for n in names) for names in SIBLINGS if name == names[0]), (path,))
        chosen = together if all(p in left for p in together) else (path,)
        if path in left:
            yield chosen
        for done in chosen:
            left.pop(done, None)


def fits(model: RoutedModel) -> bool:
    """Whether this form can read the weights of all the model's layers."""
    bases = [layer.base for layer in model.layers.values()]
    return all(bnb.is_4bit(linear) or linear.weight.is_floating_point() for linear in bases)


def groups_of(model: RoutedModel) -> dict[GatedLinear, tuple[GatedLinear, ...]]:
    """The layers that read the same input, under each of them."""
    groups = [tuple(model.layers[path] for path in paths) for paths in siblings(list(model.layers))]
    return {layer: group for group in groups for layer in group}


class Together:
    """The mixtures of a batch, one weight for every slot and row: a `Mixing`."""

    def __init__(self, model: RoutedModel, gates: torch.Tensor, keep: bool) -> None:
        """`gates` as from `RoutedModel.gates`; `keep`: hold dequantised weights from the forward to the backward product.

        Where layers are recomputed one at a time that costs one layer's weights, elsewhere those of the whole base.
        """
        self.gates = gates[:, None].to(model.base.device, model.base.dtype)  # (rows, 1, R)
        self.keep = keep
        self.groups = groups_of(model)
        self._ready: _Ready | None = None

    def output(self, layer: GatedLinear, x: torch.Tensor) -> torch.Tensor:
        """As Mixing says; the first layer of a group answers for the others too."""
        group = self.groups[layer]
        if layer is group[0]:
            self._ready = _Ready(group, x, self._products(group, x))
        ready = self._ready
        if ready is None or ready.group is not group or ready.x is not x:
            return self._products((layer,), x)[0]
        if layer is group[-1]:
            self._ready = None
        return ready.outputs[group.index(layer)]

    def _products(self, layers: Sequence[GatedLinear], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        factors = [factor for layer in layers for factor in (layer.A, layer.B)]
        return _Products.apply(tuple(layer.base for layer in layers), self.keep, x, self.gates, *factors)


@dataclass(frozen=True)
class _Ready:
    """What a group's layers give for one input."""

    group: tuple[GatedLinear, ...]
    x: torch.Tensor
    outputs: tuple[torch.Tensor, ...]


class _Products(torch.autograd.Function):
    """W·x + ((x·Aᵀ) ⊙ g)·B of several layers; gradients for x and the factors, which keep their null slot.

    *Shape:* x (rows, seq, d_in), gates (rows, 1, R), A (R + 1, d_in) and B (R + 1, d_out) in turn → (rows, seq, d_out) each.
    """

    @staticmethod
    def forward(
        ctx: Any, linears: Sequence[nn.Module], keep: bool, x: torch.Tensor, gates: torch.Tensor, *factors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])  # (tokens, d_in)
        down = _side_by_side(factors[::2], x.dtype)  # (members · R, d_in)
        hidden = _gated(flat @ down.T, gates)  # (tokens, members · R)
        weights, outputs = [], []
        for linear, b, part in zip(linears, factors[1::2], hidden.chunk(len(linears), 1), strict=True):
            weight = bnb.dense_weight(linear, x.dtype)  # (d_out, d_in)
            y = F.linear(flat, weight, linear.bias).addmm_(part, b[:-1].to(x.dtype))
            weights.append(weight)
            outputs.append(y.view(*x.shape[:-1], -1))
        ctx.linears = linears
        ctx.save_for_backward(x, gates, hidden, *factors, *(weights if keep else ()))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gates, hidden, *others = ctx.saved_tensors
        members = len(ctx.linears)
        factors, weights = others[: 2 * members], others[2 * members :]
        flat = x.reshape(-1, x.shape[-1])
        outs = [grad.reshape(-1, grad.shape[-1]) for grad in grads]  # (tokens, d_out) each
        ups = [b[:-1].to(x.dtype) for b in factors[1::2]]
        inner = _gated(torch.cat([out @ up.T for out, up in zip(outs, ups, strict=True)], 1), gates)  # as hidden
        dx = None
        if ctx.needs_input_grad[2]:
            dx = inner @ _side_by_side(factors[::2], x.dtype)
            for index, (linear, out) in enumerate(zip(ctx.linears, outs, strict=True)):
                dx.addmm_(out, weights[index] if weights else bnb.dense_weight(linear, x.dtype))
            dx = dx.view_as(x)
        downs = (inner.T @ flat).chunk(members)  # (R, d_in) each
        found = []
        for a, b, down, part, out in zip(factors[::2], factors[1::2], downs, hidden.chunk(members, 1), outs, strict=True):
            found += [_with_null(down, a), _with_null(part.T @ out, b)]
        return None, None, dx, None, *found


def _side_by_side(factors: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Without their null slots: (R + 1, d) each → (members · R, d)."""
    return torch.cat([factor[:-1] for factor in factors]).to(dtype)


def _gated(hidden: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """In place. *Shape:* hidden (tokens, members · R), gates (rows, 1, R)."""
    rows, _, slots = gates.shape
    hidden.view(rows, len(hidden) // rows, -1, slots).mul_(gates[:, None])
    return hidden


def _with_null(grad: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """(R, d) → (R + 1, d) in the factor's type."""
    return F.pad(grad.to(factor.dtype), (0, 0, 0, 1))
