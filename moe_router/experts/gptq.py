"""All contact with GPTQModel: checkpoints that GPTQ quantised (Frantar et al. 2022) as frozen bases.

transformers loads them through optimum and GPTQModel's plain PyTorch layers. Those keep their dequantised weight for the way
back, 16 bits of every layer at once, so that they are replaced by layers that unpack it once more instead.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moe_router.experts.dense import unpack_layers

METHOD = "gptq"


def installed() -> bool:
    """Whether the extra `gptq` is there."""
    return all(importlib.util.find_spec(name) is not None for name in ("gptqmodel", "optimum"))


def is_checkpoint(config: Any) -> bool:
    """Whether a transformers configuration is that of a GPTQ checkpoint."""
    declared = getattr(config, "quantization_config", None) or {}
    return declared.get("quant_method") == METHOD


def loading_config() -> Any:
    """Asks for the layers in PyTorch, whatever faster ones are there: those have no gradient. The rest is the checkpoint's."""
    from transformers import GPTQConfig

    return GPTQConfig(bits=4, backend="gptq_torch")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """GPTQModel prints a banner and a log, and transformers warns of the layers asked for; errors still come."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(action="ignore"),
    ):
        yield


class GptqLinear(nn.Linear):
    """A frozen layer whose weight is unpacked for each product, forward and backward.

    To PEFT and to this package it is a linear layer whose weight, integers, cannot be trained.
    """

    def __init__(self, packed: nn.Module) -> None:
        """`packed` is GPTQModel's layer."""
        nn.Module.__init__(self)
        self.packed = packed
        self.in_features, self.out_features = packed.in_features, packed.out_features

    @property
    def weight(self) -> torch.Tensor:
        """The packed integers: (d_in · bits / 32, d_out) int32."""
        return self.packed.qweight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.packed.bias

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in `dtype`. *Shape:* → (d_out, d_in)."""
        unpack = type(self.packed).dequantize_weight  # the instance's own is compiled, which pays for long inference only
        return unpack(self.packed).T.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """*Shape:* (…, d_in) → (…, d_out)."""
        return _Product.apply(x, self)


class _Product(torch.autograd.Function):
    """W·x + b with the weight unpacked twice instead of kept; the gradient is x's alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: GptqLinear) -> torch.Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, layer.dense(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad @ ctx.layer.dense(grad.dtype), None


def replace_layers(model: nn.Module) -> None:
    """Put a GptqLinear around each of GPTQModel's layers."""
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, BaseQuantLinear):
                setattr(parent, name, GptqLinear(module))


def make_resident(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every GptqLinear by a plain layer that holds the same numbers in `dtype`."""
    unpack_layers(model, lambda module: module.dense(dtype) if isinstance(module, GptqLinear) else None, dtype)
