"""The elementwise operations of a decoder layer in plain PyTorch, differentiable: the reference of the fused ones."""

from __future__ import annotations

import torch

from moe_router.kernels.plain import rms_norm, swiglu, turned

__all__ = ["rms_norm", "rope", "swiglu"]


def rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate queries and keys (RoFormer, Su et al. 2021).

    *Shape:* q and k (rows, seq, heads, d), cos and sin (rows, seq, d), equal in both halves of d → as q and k.
    """
    cos, sin = cos[:, :, None], sin[:, :, None]
    return q * cos + turned(q) * sin, k * cos + turned(k) * sin
