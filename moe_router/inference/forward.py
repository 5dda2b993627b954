"""One forward pass over rows of the batch: the only code that calls the base, and what faster ways replace."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Protocol

import torch

from moe_router.experts.adapters import Mixing, RoutedModel
from moe_router.inference.cache import SlotCache
from moe_router.inference.fused import fuse
from moe_router.inference.mixing import Groups, Mix, Plan, plan
from moe_router.inference.requests import Mixture
from moe_router.inference.rows import RowTable
from moe_router.kernels import of as kernels_of

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

    def refresh(self) -> None:
        """After the experts' factors were changed in place: forget what was made of them."""


class EagerForward:
    """Forward by the base's own forward, rows padded on the right."""

    def __init__(self, model: RoutedModel, cache: SlotCache, form: str = "auto", kernels: ModuleType | None = None) -> None:
        """`form` of the adapters as in `plan`; `kernels` are by default the fastest for the device."""
        self.model, self.cache, self.form = model, cache, form
        self.groups = Groups(model, kernels or kernels_of(cache.kv.device))
        if self.groups.kernels.FUSED:
            fuse(model.base.model, self.groups)
        self.table = RowTable(self.groups, cache.slots) if cache.kv.device.type == "cpu" and form != "wide" else None
        self.plan = functools.lru_cache(ROUTES_KEPT)(self._plan)
        self._mixes = functools.lru_cache(ROUTES_KEPT)(self._picked)

    def __call__(
        self, chunks: Sequence[Sequence[int]], starts: Sequence[int], first: int, mixtures: Sequence[Mixture]
    ) -> torch.Tensor:
        """As Forward says."""
        base, device = self.model.base, self.cache.kv.device
        longest, reach = max(map(len, chunks)), max(s + len(c) for s, c in zip(starts, chunks, strict=True))
        width = min(_rounded(reach), self.cache.tokens)
        mix = self._mix(tuple(mixtures), first, longest == 1)
        if longest == 1:
            inputs = torch.tensor([[c[0] for c in chunks], starts], device=device)
            return self.step(inputs, first, width, mix).float()
        seq = _rounded(longest)
        tokens = torch.tensor([[*c, *[base.eos] * (seq - len(c))] for c in chunks], device=device)  # (rows, seq)
        last = torch.tensor([len(c) - 1 for c in chunks], device=device)  # (rows,)
        offset = torch.arange(seq, device=device)
        positions = torch.tensor(starts, device=device)[:, None] + offset  # (rows, seq)
        self.cache.place(first, torch.where(offset <= last[:, None], positions, self.cache.tokens), width)
        ends, where = last.unique(return_inverse=True)
        logits = self._logits(tokens, positions, width, mix, ends)
        return logits[torch.arange(len(chunks), device=device), where].float()

    def step(self, inputs: torch.Tensor, first: int, width: int, mix: Mixing | None) -> torch.Tensor:
        """One token for each of the rows from slot `first` on, which look at the first `width` places. Nothing but kernels.

        *Shape:* inputs (2, rows): tokens, and the places they go to → logits (rows, vocabulary).
        """
        tokens, positions = inputs[0, :, None], inputs[1, :, None]  # (rows, 1)
        self.cache.place(first, positions, width)
        return self._logits(tokens, positions, width, mix, 1)[:, 0]

    def refresh(self) -> None:
        """After the experts' factors were changed in place: forget what was made of them."""
        self.groups.refresh()
        self.plan.cache_clear()
        self._mixes.cache_clear()
        if self.table is not None:
            self.table.clear()

    def _plan(self, mixtures: tuple[Mixture, ...], decode: bool) -> Plan | None:
        return plan(self.groups, mixtures, self.form, decode)

    def _mix(self, mixtures: tuple[Mixture, ...], first: int, decode: bool) -> Mixing | None:
        found = self.plan(mixtures, decode)
        if self.table is not None and found is not None and found.slots is not None and decode:
            return self.table.mix(mixtures, first, found) or self._mixes(mixtures, decode)
        return self._mixes(mixtures, decode)

    def _picked(self, mixtures: tuple[Mixture, ...], decode: bool) -> Mixing | None:
        found = self.plan(mixtures, decode)
        return Mix(self.groups, found, len(mixtures)) if found else None

    def _logits(
        self, tokens: torch.Tensor, positions: torch.Tensor, width: int, mix: Mixing | None, keep: int | torch.Tensor
    ) -> torch.Tensor:
        base = self.model.base
        with self.model.routed(mix):
            return base.model(
                input_ids=tokens,
                attention_mask=causal(positions, width, self.cache.shape.dtype),
                position_ids=positions.clamp(max=base.context - 1),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=keep,
            ).logits


def _rounded(length: int) -> int:
    """Up to a multiple of SHAPE_STEP."""
    return -(-length // SHAPE_STEP) * SHAPE_STEP


def causal(positions: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """0 where a token may look, -inf where not. *Shape:* positions (rows, seq) → (rows, 1, seq, width)."""
    ahead = torch.arange(width, device=positions.device) > positions[:, None, :, None]
    return torch.zeros(ahead.shape, dtype=dtype, device=positions.device).masked_fill_(ahead, -torch.inf)
