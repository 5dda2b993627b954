"""The elementwise operations of `plain_training` as Triton kernels that know their way back, rounded at the same places.

Where PyTorch keeps a tensor of every step between, these keep their inputs and compute the rest again. The base is frozen,
so that a norm's weight gets no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from moe_router.kernels import gpu

BLOCK = 1024


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As plain_training.rms_norm; no gradient for `weight`."""
    return _Norm.apply(x, weight, eps)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """As plain_training.swiglu."""
    return _Gate.apply(gate, up)


def rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As plain_training.rope; the head size is a power of two."""
    return _Turn.apply(q, cos, sin), _Turn.apply(k, cos, sin)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return gpu.rms_norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, weight = ctx.saved_tensors
        x, grad = x.contiguous(), grad.contiguous()
        d = x.shape[-1]
        out = torch.empty_like(x)
        block = triton.next_power_of_2(d)
        _norm_back[(x.numel() // d,)](x, weight, grad, out, d, ctx.eps, block, num_warps=8 if d > 2048 else 4)
        return out, None, None


@triton.jit
def _norm_back(x, weight, grad, out, d_all, eps, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * d_all
    d = tl.arange(0, BLOCK)
    value = tl.load(x + start + d, mask=d < d_all, other=0.0).to(tl.float32)
    factor = tl.load(weight + d, mask=d < d_all, other=0.0).to(tl.float32)
    back = tl.load(grad + start + d, mask=d < d_all, other=0.0).to(tl.float32) * factor
    scale = tl.rsqrt(tl.sum(value * value, 0) / d_all + eps)
    normal = value * scale
    inside = tl.sum(back * normal, 0) / d_all
    tl.store(out + start + d, (scale * (back - normal * inside)).to(out.dtype.element_ty), mask=d < d_all)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return gpu.swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = (t.contiguous() for t in ctx.saved_tensors)
        grad = grad.contiguous()
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        _gate_back[(triton.cdiv(gate.numel(), BLOCK),)](gate, up, grad, d_gate, d_up, gate.numel(), BLOCK)
        return d_gate, d_up


@triton.jit
def _gate_back(gate, up, grad, d_gate, d_up, total, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + i, mask=i < total, other=0.0).to(tl.float32)
    u = tl.load(up + i, mask=i < total, other=0.0).to(tl.float32)
    back = tl.load(grad + i, mask=i < total, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-g))
    tl.store(d_up + i, (back * g * share).to(d_up.dtype.element_ty), mask=i < total)
    tl.store(d_gate + i, (back * u * share * (1.0 + g * (1.0 - share))).to(d_gate.dtype.element_ty), mask=i < total)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return _turned(x.contiguous(), cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _turned(grad.contiguous(), *ctx.saved_tensors, -1.0), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, way: float) -> torch.Tensor:
    """x (rows, seq, heads, d) turned by the angles whose cos and sin (rows, seq, d) are given; way −1 turns back."""
    rows, seq, heads, size = x.shape
    out = torch.empty_like(x)
    half = size // 2
    some = max(1, BLOCK // half)  # heads in one program
    _turn[(rows * seq, triton.cdiv(heads, some))](x, cos, sin, out, heads, way, half, triton.next_power_of_2(some), num_warps=4)
    return out


@triton.jit
def _turn(x, cos, sin, out, heads, way, HALF: tl.constexpr, SOME: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * SOME + tl.arange(0, SOME)
    i = tl.arange(0, HALF)
    inside = (head < heads)[:, None] & (i < HALF)[None, :]
    at = (token * heads + head)[:, None] * 2 * HALF + i[None, :]
    one = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(x + at + HALF, mask=inside, other=0.0).to(tl.float32)
    turn = token * 2 * HALF + i
    cos1 = tl.load(cos + turn).to(tl.float32)[None, :]
    cos2 = tl.load(cos + turn + HALF).to(tl.float32)[None, :]
    sin1 = tl.load(sin + turn).to(tl.float32)[None, :] * way
    sin2 = tl.load(sin + turn + HALF).to(tl.float32)[None, :] * way
    kind = out.dtype.element_ty
    first = (one * cos1).to(kind).to(tl.float32) + (-other * sin1).to(kind).to(tl.float32)
    second = (other * cos2).to(kind).to(tl.float32) + (one * sin2).to(kind).to(tl.float32)
    tl.store(out + at, first.to(kind), mask=inside)
    tl.store(out + at + HALF, second.to(kind), mask=inside)
