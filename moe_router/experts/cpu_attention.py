"""Attention of bfloat16 models that learn on a CPU, computed in fp32.

torch's kernel (2.13) takes seven times as long backward as forward in bfloat16, a fifth of a whole training step of short
rows, and less than half of that in fp32 (docs/performance.md). It also rounds less.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

LONGEST = 512
"""In longer rows bfloat16 is as fast."""


def attention_for(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Forward passes inside, in this thread, attend as is best for learning there."""
    return _InFp32() if device.type == "cpu" and dtype == torch.bfloat16 else contextlib.nullcontext()


class _InFp32(TorchFunctionMode):
    """Sees every call of torch's attention, whichever architecture makes it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **settings: Any) -> torch.Tensor:
    """*Shape:* (rows, heads, seq, width) each → the same, in the query's type."""
    if query.requires_grad and query.shape[-2] <= LONGEST:
        parts = (_widened(part) for part in (query, key, value, *rest))
        widened = {name: _widened(part) for name, part in settings.items()}
        return F.scaled_dot_product_attention(*parts, **widened).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, *rest, **settings)


def _widened(part: Any) -> Any:
    return part.float() if isinstance(part, torch.Tensor) and part.is_floating_point() else part
