"""Near-duplicates: texts whose word 3-shingles have a Jaccard similarity of at least 0.8.

MinHash signatures (Broder 1997) come from rensa. Locality-sensitive hashing cuts each into 32 bands of 4 values, so that
of pairs at the threshold one in 20 million shares no band; pairs that share a band are compared exactly. A band is one
sort of all records, so that the index is the signatures alone. Of each value the low 16 bits are kept (b-bit minwise hashing,
Li & König 2010): 256 bytes a text, in a file when there are many.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO, TYPE_CHECKING

from moe_router.data.cleaning.text import jaccard, shingles, words

if TYPE_CHECKING:
    import numpy as np

THRESHOLD = 0.8
BANDS, ROWS = 32, 4
WINDOW = 64
"""In a band each text is compared with this many neighbours at most, so that cost grows with the number of texts."""
SPILL = 100_000
"""More texts than this have their signatures in a temporary file instead of in memory."""
_WORDLESS = 2**16 - 1
"""Every value of the signature of an empty set."""
_BATCH = 1024
_PAIRS = 1 << 16
"""Pairs whose signatures are compared at once."""
_LIKELY = 0.62
"""Pairs whose signatures agree in less than this share are not compared: five standard errors below the threshold."""


def near(one: str, other: str) -> bool:
    """Whether two texts are near-duplicates."""
    return jaccard(_shingles(one), _shingles(other)) >= THRESHOLD


@functools.lru_cache(maxsize=4096)
def _shingles(text: str) -> set[str]:
    return shingles(words(text))


def near_groups(texts: Sequence[str], kinds: Sequence[int] = ()) -> list[int]:
    """`near_labels` as a list, of 64-bit kinds without a sign."""
    import numpy as np

    return near_labels(texts, np.array(kinds, np.uint64).view(np.int64) if kinds else None).tolist()


def near_labels(texts: Sequence[str], kinds: np.ndarray | None = None) -> np.ndarray:
    """For each text the index of the first one that a chain of near-duplicates joins it to; its own when there is none.

    With `kinds`, only texts of the same kind are joined. Texts without words join nothing. Texts are read once in order,
    and again where two look alike. *Shape:* kinds (texts,) int64 → (texts,) int64.
    """
    import numpy as np

    with tempfile.TemporaryFile() as file:
        marks, worded = _signatures(texts, file)
        salt = np.zeros(len(texts), np.uint64) if kinds is None else kinds.view(np.uint64)
        joined = _Joined(len(texts))
        for band in range(BANDS):
            for left, right in _neighbours(marks, worded, salt, band, joined):
                for one, other in _likely(marks, left, right):
                    if joined.root(one) != joined.root(other) and near(texts[one], texts[other]):
                        joined.join(one, other)
        return joined.labels()


def _likely(marks: np.ndarray, left: np.ndarray, right: np.ndarray) -> Iterator[tuple[int, int]]:
    """The pairs whose signatures agree enough to be worth comparing, some at a time. *Shape:* left, right (pairs,)."""
    for start in range(0, len(left), _PAIRS):
        some, others = left[start : start + _PAIRS], right[start : start + _PAIRS]
        likely = (marks[some] == marks[others]).mean(axis=1) >= _LIKELY
        yield from zip(some[likely].tolist(), others[likely].tolist(), strict=True)


class _Joined:
    """Disjoint sets of 0 … n-1, each named by its smallest member."""

    def __init__(self, size: int) -> None:
        import numpy as np

        self._parent = np.arange(size, dtype=np.int64)

    def root(self, item: int) -> int:
        parent = self._parent
        while (above := int(parent[item])) != item:
            parent[item] = parent[above]
            item = above
        return item

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low

    def labels(self) -> np.ndarray:
        """The root of every item. *Shape:* (size,)"""
        while ((above := self._parent[self._parent]) != self._parent).any():
            self._parent = above
        return self._parent


def _signatures(texts: Sequence[str], file: IO[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Low bits of the MinHash values of every text, backed by `file` when there are many, and which texts have words.

    *Shapes:* (texts, BANDS · ROWS) uint16, (texts,) bool.
    """
    import numpy as np
    from rensa import RMinHash

    shape = (len(texts), BANDS * ROWS)
    large = len(texts) > SPILL
    marks = np.memmap(file, np.uint16, "w+", shape=shape) if large else np.empty(shape, np.uint16)
    worded = np.empty(len(texts), bool)
    rest: Iterator[str] = iter(texts)
    start = 0
    while batch := list(islice(rest, _BATCH)):
        sets = [list(shingles(words(text))) for text in batch]
        rows = RMinHash.digest_matrix_from_token_sets(sets, num_perm=shape[1], seed=1).to_rows()
        made = np.array(rows, np.uint32).astype(np.uint16)
        marks[start : start + len(batch)] = made
        worded[start : start + len(batch)] = (made != _WORDLESS).any(1)
        start += len(batch)
    return marks, worded


def _neighbours(
    marks: np.ndarray, worded: np.ndarray, salt: np.ndarray, band: int, joined: _Joined
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs that share a band and are not joined yet, nearest in the band's order first.

    *Shapes:* (pairs,) each. Equal bands lie side by side in that order, sorted further by the next band, so that the
    likest of many are neighbours.
    """
    import numpy as np

    key = _keys(marks, band, salt)
    order = np.lexsort((_keys(marks, (band + 1) % BANDS, salt), key))
    order = order[worded[order]]
    starts = np.arange(len(order))
    for distance in range(1, WINDOW + 1):
        starts = starts[starts + distance < len(order)]
        starts = starts[key[order[starts]] == key[order[starts + distance]]]
        if not len(starts):
            return
        labels = joined.labels()
        left, right = order[starts], order[starts + distance]
        apart = (labels[left] != labels[right]) & (salt[left] == salt[right])
        yield left[apart], right[apart]


def _keys(marks: np.ndarray, band: int, salt: np.ndarray) -> np.ndarray:
    """One number for each text's values in a band. *Shape:* (texts,)"""
    import numpy as np

    key = salt.copy()
    for column in range(band * ROWS, (band + 1) * ROWS):
        key = key * np.uint64(0x9E3779B97F4A7C15) + marks[:, column]
    return key
