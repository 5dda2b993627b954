"""Perplexity of a set of records, its uncertainty, and the difference between two arms on the same records.

Sums are divided once: perplexity is exp(Σ nats / Σ tokens), never a mean of perplexities. Intervals are percentile
bootstraps over records (Efron 1979). Records that depend on one another should be summed into one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

COUNTS_AT_ONCE = 1 << 22
"""Numbers held at a time while resampling, so that many records do not need much memory."""


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How arm a compares with arm b on the same records."""

    relative: float
    """perplexity(a) / perplexity(b) - 1: below 0, a is better."""
    ci95: Interval
    p: float
    """Two-sided bootstrap p-value of no difference."""

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return self.ci95.low > 0 or self.ci95.high < 0


def perplexity(nats: np.ndarray, tokens: np.ndarray) -> float:
    """exp(Σ nats / Σ tokens).

    *Shape:* nats (records,) summed over each record's response tokens, tokens (records,) how many those are.
    """
    return float(np.exp(np.sum(nats) / np.sum(tokens)))


def bootstrap_interval(nats: np.ndarray, tokens: np.ndarray, resamples: int = 1000, seed: int = 0) -> Interval:
    """95 % interval of the perplexity over records drawn again. *Shape:* as `perplexity`."""
    drawn = _resampled_sums(np.stack([nats, tokens]), resamples, seed)
    return _middle(np.exp(drawn[0] / drawn[1]))


def mean_interval(nats: np.ndarray, tokens: np.ndarray, resamples: int = 1000, seed: int = 0) -> Interval:
    """95 % interval of Σ nats / Σ tokens over records drawn again. *Shape:* as `perplexity`."""
    drawn = _resampled_sums(np.stack([nats, tokens]), resamples, seed)
    return _middle(drawn[0] / drawn[1])


def paired_difference(
    nats_a: np.ndarray, nats_b: np.ndarray, tokens: np.ndarray, resamples: int = 1000, seed: int = 0
) -> Difference:
    """Relative difference in perplexity, both arms resampled on the same records. *Shape:* (records,) each.

    The p-value is twice the smaller share of resamples on one side of 0, one resample added to numerator and
    denominator (Davison and Hinkley 1997), so it is never 0.
    """
    difference = np.asarray(nats_a, dtype=np.float64) - nats_b
    drawn = _resampled_sums(np.stack([difference, tokens]), resamples, seed)
    relative = np.expm1(drawn[0] / drawn[1])
    tail = min(int((relative <= 0).sum()), int((relative >= 0).sum()))
    p = min(1.0, 2 * (1 + tail) / (1 + resamples))
    return Difference(float(np.expm1(difference.sum() / np.sum(tokens))), _middle(relative), p)


def _resampled_sums(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums over records drawn with replacement. *Shape:* (rows, records) → (rows, resamples)."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0 or resamples < 1:
        raise ValueError("a bootstrap takes at least one record and one resample, and as many nats as token counts")
    counts = _draws(values.shape[1], resamples, np.random.default_rng(seed))
    return np.concatenate([values @ some.T for some in counts], axis=1)


def _draws(records: int, resamples: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each record is drawn in each resample: blocks of (some resamples, records)."""
    block = max(1, COUNTS_AT_ONCE // records)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = random.integers(records, size=(rows, records)) + records * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * records).reshape(rows, records)


def _middle(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))
