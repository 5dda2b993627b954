"""Keys and values of prompts seen before, in blocks of tokens."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import takewhile

import numpy as np
import torch

from moe_router.inference.cache import SlotCache

BLOCK = 16
"""Tokens of one block."""


class PrefixCache:
    """Blocks by the digest of their owner and of all tokens up to their end; the least recently used go first.

    The owner says whose keys and values they are: a library and a mixture, so that one expert's never serve another.
    """

    def __init__(self, cache: SlotCache, limit: int) -> None:
        """`limit` in bytes."""
        self.cache = cache
        self.limit = limit // (BLOCK * cache.shape.bytes_per_token)
        """Most blocks held."""
        self._blocks: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def load(self, owner: str, tokens: Sequence[int], slot: int) -> int:
        """Fill a slot with the longest known start of `tokens`, short of the last; how many tokens that is."""
        known = list(takewhile(self._blocks.__contains__, _digests(owner, tokens[:-1])))
        if known:
            self.cache.write(slot, 0, torch.cat([self._blocks[digest] for digest in known], dim=3))
            self._touch(known)
        return len(known) * BLOCK

    def save(self, owner: str, tokens: Sequence[int], slot: int) -> None:
        """Keep what a slot holds of `tokens`."""
        digests = list(_digests(owner, tokens))[: self.limit]
        for index, digest in enumerate(digests):
            if digest not in self._blocks:
                self._blocks[digest] = self.cache.read(slot, index * BLOCK, (index + 1) * BLOCK)
        self._touch(digests)
        while len(self._blocks) > self.limit:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()

    def _touch(self, digests: Sequence[bytes]) -> None:
        """Ends of prompts go before their starts, without which they could not be found."""
        for digest in reversed(digests):
            self._blocks.move_to_end(digest)


def _digests(owner: str, tokens: Sequence[int]) -> Iterator[bytes]:
    """One digest for every whole block, each over all before it."""
    running = hashlib.sha256(owner.encode())
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        running.update(np.asarray(tokens[end - BLOCK : end], dtype=np.int64).tobytes())
        yield running.digest()
