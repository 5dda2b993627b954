"""Turning logits into a confidence one can believe, and a likeness score into a threshold."""

from __future__ import annotations

import numpy as np

from moe_router.gate.weights import softmax

ROUNDING = 1e-4
"""A query alone and in a batch may differ by this much in its score; the threshold leaves that much room."""
TEMPERATURES = np.geomspace(0.05, 20, 60)


def confidence_temperature(logits: np.ndarray, best: np.ndarray) -> float:
    """The temperature under which the probability of the best expert fits the data most likely (Guo et al. 2017).

    *Shape:* logits (records, experts), best (records,) the index of the expert with the lowest loss.
    """
    likelihood = [np.log(softmax(logits / t)[np.arange(len(best)), best] + 1e-12).mean() for t in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmax(likelihood))])


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: |mean confidence - share right| over equal-width bins, weighted by size."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[which == b].mean() - right[which == b].mean()) * (which == b).mean() for b in np.unique(which)]
    return float(np.sum(gaps))


def held_out_calibration_error(logits: np.ndarray, best: np.ndarray) -> float | None:
    """Calibration error when temperature and error come from different halves of the records, both ways round.

    *Shape:* logits (records, experts), best (records,). None for fewer than two records.
    """
    even = np.arange(len(best)) % 2 == 0
    if len(best) < 2:
        return None
    confidence = np.empty(len(best))
    for half in (even, ~even):
        confidence[half] = softmax(logits[half] / confidence_temperature(logits[~half], best[~half])).max(1)
    return calibration_error(confidence, logits.argmax(1) == best)


def abstain_threshold(scores: np.ndarray, coverage: float) -> float:
    """The score that `coverage` of in-domain queries (queries,) reach; -1, the lowest there is, for all of them."""
    return float(np.quantile(scores, 1 - coverage, method="lower")) - ROUNDING if coverage < 1 else -1.0
