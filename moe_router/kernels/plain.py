"""The operations in plain PyTorch: what CPUs run, and the reference of the fused kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

FUSED = False
"""Whether these are fused kernels."""


def shrink(x: torch.Tensor, A: torch.Tensor, slots: torch.Tensor, gates: torch.Tensor, members: int) -> torch.Tensor:
    """Each row's products with its own slots of the A factors, times its gates; a gate of 0 gives 0 whatever the product.

    *Shape:* x (rows, seq, d_in), A (members · S, d_in), slots and gates (rows, K) → (rows, seq, members, K).
    """
    starts = torch.arange(0, len(A), len(A) // members, device=x.device)  # (members,)
    chosen = (starts[:, None] + slots[:, None]).flatten(1)  # (rows, members · K)
    hidden = torch.bmm(x, F.embedding(chosen, A).mT).unflatten(2, (members, -1))
    return hidden.masked_fill_((gates == 0)[:, None, None], 0).mul_(gates[:, None, None])


def expand(ys: Sequence[torch.Tensor], hidden: torch.Tensor, Bs: Sequence[torch.Tensor], slots: torch.Tensor) -> None:
    """Add each row's products with its own slots of each member's B factors to that member's y, in place.

    *Shape:* ys (rows, seq, d_out) each, hidden (rows, seq, members, K), Bs (S, d_out) each with a last slot of zeros, slots
    (rows, K).
    """
    for member, (y, factor) in enumerate(zip(ys, Bs, strict=True)):
        y.baddbmm_(hidden[:, :, member], F.embedding(slots, factor))


def shrink_all(x: torch.Tensor, A: torch.Tensor, gates: torch.Tensor, members: int) -> torch.Tensor:
    """Each row's products with all slots of the A factors, times its gates; a gate of 0 gives 0 whatever the product.

    *Shape:* x (rows, seq, d_in), A (members · S, d_in), gates (rows, S) → (rows, seq, members, S).
    """
    hidden = F.linear(x, A).unflatten(2, (members, -1))
    gates = gates[:, None, None]
    return hidden.masked_fill_(gates == 0, 0).mul_(gates)


def expand_all(ys: Sequence[torch.Tensor], hidden: torch.Tensor, Bs: Sequence[torch.Tensor]) -> None:
    """Add each row's products with all slots of each member's B factors to that member's y, in place.

    *Shape:* ys (rows, seq, d_out) each, hidden (rows, seq, members, S), Bs (S, d_out) each.
    """
    for member, (y, factor) in enumerate(zip(ys, Bs, strict=True)):
        y.flatten(0, 1).addmm_(hidden[:, :, member].flatten(0, 1), factor)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm over the last axis (Zhang & Sennrich 2019), in fp32, rounded before the weight.

    *Shape:* x (…, d), weight (d,) → (…, d).
    """
    exact = x.float()
    normal = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normal.to(x.dtype)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up (Shazeer 2020). *Shape:* equal, (…, d) → (…, d)."""
    return F.silu(gate) * up


def rope_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Rotate queries and keys (RoFormer, Su et al. 2021), keep keys and values at `positions`; the rotated queries.

    *Shape:* q (rows, seq, heads, d), k and v (rows, seq, kv_heads, d), cos and sin (rows, seq, d), keys and values
    (rows, kv_heads, places, d), positions (rows, seq) → (rows, seq, heads, d).
    """
    cos, sin = cos[:, :, None], sin[:, :, None]
    rows = torch.arange(len(k), device=k.device)[:, None]
    keys[rows, :, positions] = k * cos + turned(k) * sin
    values[rows, :, positions] = v
    return q * cos + turned(q) * sin


def turned(x: torch.Tensor) -> torch.Tensor:
    one, other = x.chunk(2, -1)
    return torch.cat([-other, one], -1)
