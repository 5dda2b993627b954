"""The model that is trained: a stock transformers class, attention that stays inside documents, NF4 seen in training."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "documents"
LEVELS = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
          0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)  # fmt: skip
"""The 16 values of NormalFloat-4 (Dettmers et al., "QLoRA", 2023)."""
BLOCK = 64
"""Weights that share a scale."""


def build(settings: dict[str, Any], vocabulary: int, context: int, end: int = 0, pad: int = 1) -> PreTrainedModel:
    """A fresh float32 model of that architecture, initialised from torch's seed."""
    shape = {key: value for key, value in settings.items() if key != "architecture"}
    config = AutoConfig.for_model(
        settings["architecture"],
        vocab_size=vocabulary,
        max_position_embeddings=context,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=pad,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        rms_norm_eps=1e-6,
        **shape,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside documents: `starts` (documents + 1,) marks them in the flattened rows; None is plain causal.

    query (rows, heads, seq, dim), key and value (rows, kv heads, seq, dim) -> (rows, seq, heads, dim).
    """
    starts: Tensor | None = kwargs.get("starts")
    groups = query.size(1) // key.size(1)
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if starts is None or not query.is_cuda:
        mask = None if starts is None else _mask(starts, query.size(0), query.size(2))
        out = nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scaling)
        return out.transpose(1, 2), None
    rows, heads, seq, dim = query.shape
    flat = [x.transpose(1, 2).reshape(rows * seq, heads, dim) for x in (query, key, value)]
    return _varlen(*flat, starts, seq).view(rows, seq, heads, dim), None


def _varlen(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    causal = {"window_size": (-1, 0)} if WINDOWED else {"is_causal": True}
    query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    return varlen_attn(query, key, value, starts, starts, longest, longest, **causal)


def _windowed() -> bool:
    """Whether torch's variable-length attention is told of causality by its window (2.11 on) rather than by a flag."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


WINDOWED = _windowed()


def _mask(starts: Tensor, rows: int, seq: int) -> Tensor:
    """(rows, 1, seq, seq) bool: same document, not later."""
    place = torch.arange(rows * seq, device=starts.device)
    document = torch.searchsorted(starts, place, right=True).view(rows, seq)
    same = document[:, :, None] == document[:, None, :]
    return (same & torch.ones(seq, seq, dtype=torch.bool, device=starts.device).tril())[:, None]


class Nf4(nn.Module):
    """A weight as bitsandbytes stores it in NF4, straight through to the gradient."""

    def __init__(self, device: torch.device):
        super().__init__()
        levels = torch.tensor(LEVELS, device=device)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("edges", (levels[1:] + levels[:-1]) / 2, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            blocks = weight.detach().reshape(-1, BLOCK)
            scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
            rounded = (self.levels[torch.bucketize(blocks / scale, self.edges)] * scale).view_as(weight)
        return weight + (rounded - weight).detach()


def quantise(model: PreTrainedModel) -> None:
    """From now on every linear layer but the head computes with its NF4 form."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            parametrize.register_parametrization(module, "weight", Nf4(module.weight.device))


def unquantise(model: PreTrainedModel) -> None:
    """Undoes `quantise`, keeping the float weights."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, document_attention)
