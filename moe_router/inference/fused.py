"""Fused kernels inside a transformers model: norms, gated MLPs, and attention that writes straight into the slot cache.

A decoder layer of stock transformers launches some forty kernels beside its matrix products; with these it is about ten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from moe_router.experts.adapters import GatedLinear
from moe_router.experts.fused_layers import kind_of
from moe_router.inference.cache import SlotCache
from moe_router.inference.mixing import Groups, Mix


def fuse(model: nn.Module, groups: Groups) -> int:
    """Let the layers of a model use the kernels of `groups` in passes without gradients; how many layers do.

    Other passes run the layers as they were, so that the model can still be trained on. Fusing again replaces the groups.
    """
    unfuse(model)
    fused = 0
    for module in model.modules():
        kind = kind_of(module)
        if kind and "forward" not in vars(module):
            module.forward = _MAKERS[kind](module, groups, module.forward)  # type: ignore[method-assign]
            fused += 1
    return fused


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`."""
    for module in model.modules():
        if kind_of(module):
            vars(module).pop("forward", None)


def _norm(module: nn.Module, groups: Groups, plain: Callable) -> Callable:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return plain(x)
        return groups.kernels.rms_norm(x, module.weight, module.variance_epsilon)

    return forward


def _mlp(module: nn.Module, groups: Groups, plain: Callable) -> Callable:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return plain(x)
        gate, up = _outputs([module.gate_proj, module.up_proj], x)
        return _outputs([module.down_proj], groups.kernels.swiglu(gate, up))[0]

    return forward


def _attention(module: nn.Module, groups: Groups, plain: Callable) -> Callable:
    def forward(
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        cache = past_key_values
        if torch.is_grad_enabled() or not isinstance(cache, SlotCache):
            return plain(hidden_states, position_embeddings, attention_mask, past_key_values=cache, **kwargs)
        heads = (*hidden_states.shape[:-1], -1, module.head_dim)
        q, k, v = (y.view(heads) for y in _outputs([module.q_proj, module.k_proj, module.v_proj], hidden_states))
        if hasattr(module, "q_norm"):
            q, k = module.q_norm(q), module.k_norm(k)
        keys, values = cache.kv[module.layer_idx][:, cache.rows]  # (rows, kv_heads, tokens + 1, d)
        q = groups.kernels.rope_store(q, k, v, *position_embeddings, keys, values, cache.positions)
        keys, values = keys[:, :, : cache.width], values[:, :, : cache.width]
        mixed, _ = sdpa_attention_forward(
            module, q.transpose(1, 2), keys, values, attention_mask, dropout=0.0, scaling=module.scaling
        )
        return _outputs([module.o_proj], mixed.flatten(2))[0], None

    return forward


def _outputs(layers: Sequence[nn.Module], x: torch.Tensor) -> Sequence[torch.Tensor]:
    """Of layers that read the same input, in as few launches as their route allows."""
    route = layers[0].route if isinstance(layers[0], GatedLinear) else None
    return route.outputs(layers, x) if isinstance(route, Mix) else [layer(x) for layer in layers]


_MAKERS: dict[str, Callable[..., Callable]] = {"norm": _norm, "mlp": _mlp, "attention": _attention}
