"""The KV cache: one preallocated tensor, one slot per row of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from moe_router.errors import BaseModelError, ConfigError
from moe_router.experts.base import Base


@dataclass(frozen=True)
class CacheShape:
    """What a base keeps of each token."""

    layers: int
    heads: int
    head_size: int
    dtype: torch.dtype
    context: int
    """Longest sequence that full attention serves exactly: the base's, or its sliding window."""

    @classmethod
    @torch.inference_mode()
    def of(cls, base: Base) -> CacheShape:
        """Ask the base itself, by one forward pass. Raises BaseModelError when it keeps something else than keys and values."""
        token = torch.tensor([[base.eos]], device=base.device)
        cache = getattr(base.model(input_ids=token, use_cache=True), "past_key_values", None)
        layers = list(getattr(cache, "layers", []))
        plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        shapes = {(t.shape, t.dtype) for layer in layers for t in (layer.keys, layer.values)} if plain else set()
        if len(shapes) != 1:
            raise BaseModelError(
                f"base {base.id!r} does not keep plain keys and values of one shape in every layer: use another base"
            )
        shape, dtype = shapes.pop()
        windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
        return cls(len(layers), shape[1], shape[3], dtype, min([base.context, *windows]))

    @property
    def bytes_per_token(self) -> int:
        """2 · layers · heads · head size numbers."""
        return 2 * self.layers * self.heads * self.head_size * self.dtype.itemsize


class SlotCache(Cache):
    """A transformers cache over the first rows of a preallocated tensor.

    `place` says where the next forward pass writes and how far it reads.
    """

    def __init__(self, shape: CacheShape, slots: int, tokens: int, device: torch.device) -> None:
        """Raises ConfigError with the estimate when the memory is not there."""
        self.shape, self.slots, self.tokens = shape, slots, tokens
        size = (shape.layers, 2, slots, shape.heads, tokens + 1, shape.head_size)
        try:
            self.kv = torch.zeros(size, dtype=shape.dtype, device=device)
        except (RuntimeError, MemoryError) as error:
            raise ConfigError(
                f"the KV cache of {slots} slots of {tokens:,} tokens needs {self.gib:.1f} GiB on {device}: "
                "lower the engine's slots or context"
            ) from error
        super().__init__(layers=[_SlotLayer(self, index) for index in range(shape.layers)])

    @property
    def gib(self) -> float:
        """Memory of all slots."""
        return self.slots * self.tokens * self.shape.bytes_per_token / (1 << 30)

    def place(self, first: int, positions: torch.Tensor, width: int) -> None:
        """The next pass covers the rows from slot `first` on, writes at `positions` (rows, seq) and reads `width` tokens."""
        self.rows = slice(first, first + len(positions))
        self.positions = positions
        self.index = torch.arange(first, first + len(positions), device=positions.device)[:, None]  # (rows, 1)
        self.width = width

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` tokens of two slots."""
        if one != other:
            self.kv[:, :, [one, other], :, :length] = self.kv[:, :, [other, one], :, :length]

    def read(self, slot: int, start: int, stop: int) -> torch.Tensor:
        """A copy of a slot's tokens: (layers, 2, heads, stop - start, head size)."""
        return self.kv[:, :, slot, :, start:stop].clone()

    def write(self, slot: int, start: int, block: torch.Tensor) -> None:
        """Put back what `read` gave."""
        self.kv[:, :, slot, :, start : start + block.shape[3]] = block

    def clear(self, slot: int) -> None:
        """Zero a slot, so that its next row does not meet NaN behind the mask."""
        self.kv[:, :, slot] = 0


class _SlotLayer(CacheLayerMixin):
    """One layer's part of a SlotCache."""

    is_initialized = True

    def __init__(self, cache: SlotCache, index: int) -> None:
        super().__init__()
        self.cache = cache
        self.keys, self.values = cache.kv[index]  # (slots, heads, tokens + 1, head size) each
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None: ...

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """*Shape:* (rows, heads, seq, head size) each → (rows, heads, width, head size), views of the cache."""
        at = self.cache
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            kept[at.index, :, at.positions] = new.transpose(1, 2)
        return self.keys[at.rows, :, : at.width], self.values[at.rows, :, : at.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.width, 0

    def get_seq_length(self) -> int:
        return self.cache.width

    def get_max_length(self) -> int:
        return self.cache.tokens
