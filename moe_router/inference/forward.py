"""One forward pass over rows of the batch: the only code that calls the base, and what faster ways replace."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from moe_router.experts.adapters import RoutedModel, SlotRoute
from moe_router.inference.cache import SlotCache
from moe_router.inference.requests import GRAIN, Mixture

SHAPE_STEP = 32
"""Lengths are multiples of it: libraries keep a compiled kernel for every shape they have seen (docs/inference.md)."""
ROUTES_KEPT = 16
"""Routes of recent batches; a batch keeps its rows for many steps."""


class Forward(Protocol):
    """Reads tokens into the cache and gives the logits of what follows."""

    def __call__(
        self, chunks: Sequence[Sequence[int]], starts: Sequence[int], first: int, mixtures: Sequence[Mixture]
    ) -> torch.Tensor:
        """Row i sits in slot `first + i`, holds `starts[i]` tokens and reads `chunks[i]`, at least one.

        *Shape:* → (rows, vocabulary) fp32 on the device, after each row's last token.
        """


class EagerForward:
    """Forward by the base's own forward, rows padded on the right."""

    def __init__(self, model: RoutedModel, cache: SlotCache) -> None:
        self.model, self.cache = model, cache
        self._routes = functools.lru_cache(ROUTES_KEPT)(functools.partial(route_of, model))

    def __call__(
        self, chunks: Sequence[Sequence[int]], starts: Sequence[int], first: int, mixtures: Sequence[Mixture]
    ) -> torch.Tensor:
        base, device = self.model.base, self.cache.kv.device
        longest, reach = max(map(len, chunks)), max(s + len(c) for s, c in zip(starts, chunks, strict=True))
        seq = longest if longest == 1 else _rounded(longest)
        width = min(_rounded(reach), self.cache.tokens)
        tokens = torch.tensor([[*c, *[base.eos] * (seq - len(c))] for c in chunks], device=device)  # (rows, seq)
        last = torch.tensor([len(c) - 1 for c in chunks], device=device)  # (rows,)
        offset = torch.arange(seq, device=device)
        positions = torch.tensor(starts, device=device)[:, None] + offset  # (rows, seq)
        self.cache.place(first, torch.where(offset <= last[:, None], positions, self.cache.tokens), width)
        ends, where = last.unique(return_inverse=True)
        with self.model.routed(self._routes(tuple(mixtures))):
            out = base.model(
                input_ids=tokens,
                attention_mask=causal(positions, width, self.cache.shape.dtype),
                position_ids=positions.clamp(max=base.context - 1),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=ends,
            )
        return out.logits[torch.arange(len(chunks), device=device), where].float()


def _rounded(length: int) -> int:
    """Up to a multiple of SHAPE_STEP."""
    return -(-length // SHAPE_STEP) * SHAPE_STEP


def causal(positions: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """0 where a token may look, -inf where not. *Shape:* positions (rows, seq) → (rows, 1, seq, width)."""
    ahead = torch.arange(width, device=positions.device) > positions[:, None, :, None]
    return torch.zeros(ahead.shape, dtype=dtype, device=positions.device).masked_fill_(ahead, -torch.inf)


def route_of(model: RoutedModel, mixtures: Sequence[Mixture]) -> SlotRoute | None:
    """The mixtures of a batch on the rank axis."""
    weights = np.array([mixture[:-1] for mixture in mixtures], dtype=np.float32).reshape(len(mixtures), -1) / GRAIN
    return model.route(weights, np.array([float(mixture[-1]) for mixture in mixtures]))
