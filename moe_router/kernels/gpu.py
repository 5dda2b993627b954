"""The operations of `plain` as Triton kernels, rounded at the same places."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from moe_router.kernels import plain

FUSED = True
MOST_TOKENS = 64
"""More tokens than this, all with all slots, are large enough for the plain matrix products."""
MOST_SLOTS = 128
"""Rows that use more slots than this go through the plain operations, whose matrix products are then large enough."""


def shrink(x: torch.Tensor, A: torch.Tensor, slots: torch.Tensor, gates: torch.Tensor, members: int) -> torch.Tensor:
    """As plain.shrink. One token a row: one program for a few slots of a row; else one for some tokens and all slots."""
    x = x.contiguous()
    rows, seq, d_in = x.shape
    count = slots.shape[1]
    total = members * count
    if seq > 1 and total > MOST_SLOTS:
        return plain.shrink(x, A, slots, gates, members)
    out = torch.empty(rows, seq, members, count, dtype=x.dtype, device=x.device)
    if seq == 1:
        some = 4 if rows > 8 else 1
        block = min(triton.next_power_of_2(d_in), 1024 if some > 1 else 4096)
        _shrink[(rows, triton.cdiv(total, some))](
            x, A, slots, gates, out, d_in, len(A) // members, total, count, some, block, num_warps=4 if some > 1 else 8
        )
    else:
        wide = max(16, triton.next_power_of_2(total))
        _shrink_tokens[(rows, triton.cdiv(seq, 32))](
            x, A, slots, gates, out, seq, d_in, len(A) // members, total, count, 32, wide, 128, num_warps=4, num_stages=3
        )
    return out


@triton.jit
def _shrink(x, a, slots, gates, out, d_in, per_member, total, K: tl.constexpr, SOME: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    j = tl.program_id(1) * SOME + tl.arange(0, SOME)
    gate = tl.load(gates + row * K + j % K, mask=j < total, other=0.0)
    slot = tl.load(slots + row * K + j % K, mask=j < total, other=0)
    used = (j < total) & (gate != 0)
    start = ((j // K) * per_member + slot) * d_in
    sums = tl.zeros((SOME, BLOCK), dtype=tl.float32)
    for at in range(0, d_in, BLOCK):
        d = at + tl.arange(0, BLOCK)
        inputs = tl.load(x + row * d_in + d, mask=d < d_in, other=0.0).to(tl.float32)
        factors = tl.load(a + start[:, None] + d[None, :], mask=used[:, None] & (d < d_in)[None, :], other=0.0)
        sums += inputs[None, :] * factors.to(tl.float32)
    hidden = tl.sum(sums, 1).to(out.dtype.element_ty).to(tl.float32) * gate.to(tl.float32)
    tl.store(out + row * total + j, tl.where(used, hidden, 0.0).to(out.dtype.element_ty), mask=j < total)


@triton.jit
def _shrink_tokens(
    x, a, slots, gates, out, seq, d_in, per_member, total,
    K: tl.constexpr, TOKENS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    token = (row * seq + t).to(tl.int64)
    j = tl.arange(0, WIDE)
    gate = tl.load(gates + row * K + j % K, mask=j < total, other=0.0)
    slot = tl.load(slots + row * K + j % K, mask=j < total, other=0)
    used = (j < total) & (gate != 0)
    start = ((j // K) * per_member + slot) * d_in
    sums = tl.zeros((TOKENS, WIDE), dtype=tl.float32)
    for at in range(0, d_in, BLOCK):
        d = at + tl.arange(0, BLOCK)
        inputs = tl.load(x + token[:, None] * d_in + d[None, :], mask=(t < seq)[:, None] & (d < d_in)[None, :], other=0.0)
        factors = tl.load(a + start[None, :] + d[:, None], mask=used[None, :] & (d < d_in)[:, None], other=0.0)
        sums = tl.dot(inputs, factors, sums, input_precision="ieee")
    hidden = sums.to(out.dtype.element_ty).to(tl.float32) * gate.to(tl.float32)[None, :]
    hidden = tl.where(used[None, :], hidden, 0.0).to(out.dtype.element_ty)
    tl.store(out + token[:, None] * total + j[None, :], hidden, mask=(t < seq)[:, None] & (j < total)[None, :])


def expand(ys: Sequence[torch.Tensor], hidden: torch.Tensor, Bs: Sequence[torch.Tensor], slots: torch.Tensor) -> None:
    """As plain.expand. Up to three members share a launch; one program for a stretch of outputs of one or some tokens."""
    hidden = hidden.contiguous()
    rows, seq, members, count = hidden.shape
    if count > MOST_SLOTS:
        plain.expand(ys, hidden, Bs, slots)
        return
    tokens = 1 if seq == 1 else 64
    block = 128 if seq > 1 else 256 if rows <= 8 else 512
    slots_block = max(16, triton.next_power_of_2(count))
    for at in range(0, members, 3):
        (b0, y0), (b1, y1), (b2, y2), ends = _three(Bs[at : at + 3], ys[at : at + 3], block)
        _expand[(rows * triton.cdiv(seq, tokens), ends[-1])](
            y0, y1, y2, b0, b1, b2, y0.shape[2], y1.shape[2], y2.shape[2], ends[0], ends[1],
            hidden, slots, seq, at, members, count, len(b0) - 1, slots_block, tokens, block, num_warps=8 if seq > 1 else 4,
        )  # fmt: skip


@triton.jit
def _expand(
    y0, y1, y2, b0, b1, b2, d0, d1, d2, end0, end1, hidden, slots, seq, member, members, count, null,
    K: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    if part < end0:
        _expand_part(y0, b0, d0, part, hidden, slots, seq, member, members, count, null, K, TOKENS, BLOCK)
    elif part < end1:
        _expand_part(y1, b1, d1, part - end0, hidden, slots, seq, member + 1, members, count, null, K, TOKENS, BLOCK)
    else:
        _expand_part(y2, b2, d2, part - end1, hidden, slots, seq, member + 2, members, count, null, K, TOKENS, BLOCK)


@triton.jit
def _expand_part(
    y, b, d_out, part, hidden, slots, seq, member, members, count, null,
    K: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = (seq + TOKENS - 1) // TOKENS
    row = tl.program_id(0) // blocks
    d = part * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, K)
    slot = tl.load(slots + row * count + k, mask=k < count, other=null)
    inside = (slot < null)[:, None] & (d < d_out)[None, :]
    factors = tl.load(b + slot[:, None] * d_out + d[None, :], mask=inside, other=0.0)  # (K, BLOCK)
    if TOKENS == 1:
        gated = tl.load(hidden + (row * members + member) * count + k, mask=k < count, other=0.0).to(tl.float32)
        delta = tl.sum(gated[:, None] * factors.to(tl.float32), 0)
        place = y + row.to(tl.int64) * d_out + d
        before = tl.load(place, mask=d < d_out, other=0.0).to(tl.float32)
        tl.store(place, (before + delta).to(y.dtype.element_ty), mask=d < d_out)
    else:
        t = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS)
        token = (row * seq + t).to(tl.int64)
        some = (t < seq)[:, None]
        gated = tl.load(
            hidden + (token[:, None] * members + member) * count + k[None, :], mask=some & (k < count)[None, :], other=0.0
        )
        places = y + token[:, None] * d_out + d[None, :]
        before = tl.load(places, mask=some & (d < d_out)[None, :], other=0.0).to(tl.float32)
        after = tl.dot(gated, factors, before, input_precision="ieee")
        tl.store(places, after.to(y.dtype.element_ty), mask=some & (d < d_out)[None, :])


def shrink_all(x: torch.Tensor, A: torch.Tensor, gates: torch.Tensor, members: int) -> torch.Tensor:
    """As plain.shrink_all; up to MOST_TOKENS tokens by one program for 16 slots of all tokens."""
    rows, seq, d_in = x.shape
    if rows * seq > MOST_TOKENS:
        return plain.shrink_all(x, A, gates, members)
    x = x.contiguous()
    out = torch.empty(rows, seq, members, len(A) // members, dtype=x.dtype, device=x.device)
    tokens = max(16, triton.next_power_of_2(rows * seq))
    _shrink_all[(triton.cdiv(len(A), 16),)](
        x, A, gates, out, rows * seq, seq, d_in, len(A), len(A) // members, 16, tokens, 128, num_warps=4, num_stages=4
    )
    return out


@triton.jit
def _shrink_all(
    x, a, gates, out, count, seq, d_in, total, per_member, SOME: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr
):
    j = tl.program_id(0) * SOME + tl.arange(0, SOME)
    t = tl.arange(0, TOKENS)
    sums = tl.zeros((TOKENS, SOME), dtype=tl.float32)
    for at in range(0, d_in, BLOCK):
        d = at + tl.arange(0, BLOCK)
        inputs = tl.load(x + t[:, None] * d_in + d[None, :], mask=(t < count)[:, None] & (d < d_in)[None, :], other=0.0)
        factors = tl.load(a + j[None, :] * d_in + d[:, None], mask=(j < total)[None, :] & (d < d_in)[:, None], other=0.0)
        sums = tl.dot(inputs, factors, sums, input_precision="ieee")
    inside = (t < count)[:, None] & (j < total)[None, :]
    gate = tl.load(gates + (t // seq)[:, None] * per_member + (j % per_member)[None, :], mask=inside, other=0.0)
    hidden = sums.to(out.dtype.element_ty).to(tl.float32) * gate.to(tl.float32)
    hidden = tl.where(gate != 0, hidden, 0.0).to(out.dtype.element_ty)
    tl.store(out + t[:, None] * total + j[None, :], hidden, mask=inside)


def expand_all(ys: Sequence[torch.Tensor], hidden: torch.Tensor, Bs: Sequence[torch.Tensor]) -> None:
    """As plain.expand_all; up to MOST_TOKENS tokens by one program for 64 outputs of all tokens, three members a launch."""
    hidden = hidden.contiguous()
    rows, seq, members, slots = hidden.shape
    if rows * seq > MOST_TOKENS:
        plain.expand_all(ys, hidden, Bs)
        return
    tokens = max(16, triton.next_power_of_2(rows * seq))
    for at in range(0, members, 3):
        (b0, y0), (b1, y1), (b2, y2), ends = _three(Bs[at : at + 3], ys[at : at + 3], 64)
        _expand_all[(ends[-1],)](
            y0, y1, y2, b0, b1, b2, y0.shape[2], y1.shape[2], y2.shape[2], ends[0], ends[1],
            hidden, rows * seq, at, members, slots, tokens, 64, 64 if slots > 32 and hidden.itemsize == 2 else 32, num_warps=4,
        )  # fmt: skip


@triton.jit
def _expand_all(
    y0, y1, y2, b0, b1, b2, d0, d1, d2, end0, end1, hidden, count, member, members, slots,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    if part < end0:
        _expand_all_part(y0, b0, d0, part, hidden, count, member, members, slots, TOKENS, BLOCK, SLOTS)
    elif part < end1:
        _expand_all_part(y1, b1, d1, part - end0, hidden, count, member + 1, members, slots, TOKENS, BLOCK, SLOTS)
    else:
        _expand_all_part(y2, b2, d2, part - end1, hidden, count, member + 2, members, slots, TOKENS, BLOCK, SLOTS)


@triton.jit
def _expand_all_part(
    y, b, d_out, part, hidden, count, member, members, slots, TOKENS: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr
):
    d = part * BLOCK + tl.arange(0, BLOCK)
    t = tl.arange(0, TOKENS)
    inside = (t < count)[:, None] & (d < d_out)[None, :]
    after = tl.load(y + t[:, None] * d_out + d[None, :], mask=inside, other=0.0).to(tl.float32)
    for at in range(0, slots, SLOTS):
        k = at + tl.arange(0, SLOTS)
        places = (t[:, None] * members + member) * slots + k[None, :]
        gated = tl.load(hidden + places, mask=(t < count)[:, None] & (k < slots)[None, :], other=0.0)
        factors = tl.load(b + k[:, None] * d_out + d[None, :], mask=(k < slots)[:, None] & (d < d_out)[None, :], other=0.0)
        after = tl.dot(gated, factors, after, input_precision="ieee")
    tl.store(y + t[:, None] * d_out + d[None, :], after.to(y.dtype.element_ty), mask=inside)


def _three(factors: Sequence, ys: Sequence[torch.Tensor], some: int) -> tuple:
    """Factors with their outputs, the last one repeated up to three, and where each one's programs end."""
    ends = list(itertools.accumulate(triton.cdiv(y.shape[-1], some) for y in ys))
    pairs = list(zip(factors, ys, strict=True))
    short = 3 - len(pairs)
    return *pairs, *pairs[-1:] * short, [*ends, *ends[-1:] * short]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As plain.rms_norm; one program a row."""
    x = x.contiguous()
    d = x.shape[-1]
    out = torch.empty_like(x)
    _rms_norm[(x.numel() // d,)](x, weight, out, d, eps, triton.next_power_of_2(d), num_warps=8 if d > 2048 else 4)
    return out


@triton.jit
def _rms_norm(x, weight, out, d_all, eps, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * d_all
    d = tl.arange(0, BLOCK)
    value = tl.load(x + start + d, mask=d < d_all, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / d_all + eps)
    normal = (value * scale).to(out.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + d, mask=d < d_all, other=0.0).to(tl.float32)
    tl.store(out + start + d, (normal * factor).to(out.dtype.element_ty), mask=d < d_all)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """As plain.swiglu; overwrites nothing."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    block = 1024
    _swiglu[(triton.cdiv(gate.numel(), block),)](gate, up, out, gate.numel(), block)
    return out


@triton.jit
def _swiglu(gate, up, out, total, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + i, mask=i < total, other=0.0).to(tl.float32)
    u = tl.load(up + i, mask=i < total, other=0.0).to(tl.float32)
    active = (g / (1.0 + tl.exp(-g))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + i, (active * u).to(out.dtype.element_ty), mask=i < total)


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
    """As plain.rope_store; one program for one head of one token. The head size is a power of two."""
    rows, seq, heads, size = q.shape
    kv_heads = k.shape[2]
    q, k, v, cos, sin = (t.contiguous() for t in (q, k, v, cos, sin))
    out = torch.empty_like(q)
    _rope_store[(rows * seq, heads + 2 * kv_heads)](
        q, k, v, cos, sin, keys, values, positions, out, seq, heads, kv_heads,
        keys.stride(0), keys.stride(1), keys.stride(2), positions.stride(0), positions.stride(1), size // 2, num_warps=1,
    )  # fmt: skip
    return out


@triton.jit
def _rope_store(
    q, k, v, cos, sin, keys, values, positions, out, seq, heads, kv_heads,
    row_stride, head_stride, place_stride, position_row, position_token, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = token // seq
    place = tl.load(positions + row * position_row + (token % seq) * position_token)
    i = tl.arange(0, HALF)
    kept = row * row_stride + place * place_stride
    if head >= heads + kv_heads:
        source = v + (token * kv_heads + head - heads - kv_heads) * 2 * HALF
        target = values + kept + (head - heads - kv_heads) * head_stride
        tl.store(target + i, tl.load(source + i))
        tl.store(target + HALF + i, tl.load(source + HALF + i))
    else:
        kind = out.dtype.element_ty
        if head < heads:
            source = q + (token * heads + head) * 2 * HALF
            target = out + (token * heads + head) * 2 * HALF
        else:
            source = k + (token * kv_heads + head - heads) * 2 * HALF
            target = keys + kept + (head - heads) * head_stride
        one = tl.load(source + i).to(tl.float32)
        other = tl.load(source + HALF + i).to(tl.float32)
        turn = token * 2 * HALF
        cos1 = tl.load(cos + turn + i).to(tl.float32)
        cos2 = tl.load(cos + turn + HALF + i).to(tl.float32)
        sin1 = tl.load(sin + turn + i).to(tl.float32)
        sin2 = tl.load(sin + turn + HALF + i).to(tl.float32)
        first = (one * cos1).to(kind).to(tl.float32) + (-other * sin1).to(kind).to(tl.float32)
        second = (other * cos2).to(kind).to(tl.float32) + (one * sin2).to(kind).to(tl.float32)
        tl.store(target + i, first.to(kind))
        tl.store(target + HALF + i, second.to(kind))
