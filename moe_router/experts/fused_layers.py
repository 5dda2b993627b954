"""Fused norms, gated MLPs and rotary embeddings in a transformers model while it trains.

Stock layers write a dozen tensors between two matrix products and keep most of them for the backward pass; these write
and keep a few.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Architectures whose layers compute exactly what the kernels do, by the names of their classes."""


@contextlib.contextmanager
def fusing(model: nn.Module, ops: ModuleType | None) -> Iterator[None]:
    """Passes inside use `ops` (plain_training's functions) in the layers that it fits; None leaves the layers as they are."""
    if ops is None:
        yield
        return
    fit = {module: kind for module in model.modules() if (kind := kind_of(module))}
    before = {module: vars(module).get("forward") for module in fit}
    for module, kind in fit.items():
        module.forward = _MAKERS[kind](module, ops, module.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward  # type: ignore[method-assign]


def kind_of(module: nn.Module) -> str:
    """`norm`, `mlp` or `attention` for a module that the kernels can replace, else nothing."""
    name = type(module).__name__
    family = next((family for family in FAMILIES if name.startswith(family)), "")
    kind = name.removeprefix(family) if family else ""
    if kind == "RMSNorm":
        return "norm"
    if kind == "MLP" and module.config.hidden_act in ("silu", "swish"):
        return "mlp"
    size = getattr(module, "head_dim", 0)
    if kind == "Attention" and module.config._attn_implementation == "sdpa" and size and size & (size - 1) == 0:
        return "attention"
    return ""


def _norm(module: nn.Module, ops: ModuleType, plain: Callable) -> Callable:
    return lambda x: ops.rms_norm(x, module.weight, module.variance_epsilon)


def _mlp(module: nn.Module, ops: ModuleType, plain: Callable) -> Callable:
    return lambda x: module.down_proj(ops.swiglu(module.gate_proj(x), module.up_proj(x)))


def _attention(module: nn.Module, ops: ModuleType, plain: Callable) -> Callable:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def forward(
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if past_key_values is not None:
            return plain(hidden_states, position_embeddings, attention_mask, past_key_values=past_key_values, **kwargs)
        heads = (*hidden_states.shape[:-1], -1, module.head_dim)
        q, k, v = (layer(hidden_states).view(heads) for layer in (module.q_proj, module.k_proj, module.v_proj))
        if hasattr(module, "q_norm"):
            q, k = module.q_norm(q), module.k_norm(k)
        q, k = ops.rope(q, k, *position_embeddings)
        q, k, v = (heads_first.transpose(1, 2) for heads_first in (q, k, v))
        mixed, _ = sdpa_attention_forward(module, q, k, v, attention_mask, dropout=0.0, scaling=module.scaling, **kwargs)
        return module.o_proj(mixed.flatten(2)), None

    return forward


_MAKERS: dict[str, Callable[..., Callable]] = {"norm": _norm, "mlp": _mlp, "attention": _attention}
