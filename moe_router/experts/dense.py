"""Layers that hold their weight packed, held as plain ones instead."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def unpack_layers(model: nn.Module, weight_of: Callable[[nn.Module], torch.Tensor | None], dtype: torch.dtype) -> None:
    """Replace every layer that `weight_of` gives a weight (d_out, d_in) for by a plain linear one with that weight, frozen."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            weight = weight_of(module)
            if weight is None:
                continue
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
            plain.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            if module.bias is not None:
                plain.bias = nn.Parameter(module.bias.data.to(dtype), requires_grad=False)
            setattr(parent, name, plain)
