"""Arms that no mixture of the library's adapters can express: measured on a model of their own, as the others are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_router.experts.base import Base
from moe_router.experts.encode import Example
from moe_router.experts.scoring import Scores, score_examples
from moe_router.report.arms import Arm, Costs
from moe_router.report.bench import Bench
from moe_router.report.measure import Measurement, bits_per_byte
from moe_router.report.mixes import Mix


@dataclass(frozen=True)
class Unrouted:
    """A base as it is, in the form that `score_examples` reads."""

    base: Base

    def route(self, weights: np.ndarray, shared: np.ndarray) -> None:
        """Nothing: what answers is not for a gate to say."""

    def routed(self, route: None) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext(route)

    def score(self, examples: Sequence[Example]) -> Scores:
        """Loss of each example: nats (records,)."""
        return score_examples(self, examples, np.zeros((len(examples), 0), dtype=np.float32))  # type: ignore[arg-type]


def measured(name: str, model: Unrouted, bench: Bench, costs: Costs, **more: Any) -> Measurement:
    """Score and time the arm on the test records; it answers no questions."""
    start = time.perf_counter()
    scores = model.score(bench.examples)
    seconds = time.perf_counter() - start
    settings = bench.config.report
    arm = Arm.measured(
        name,
        scores.nats,
        bench.target_tokens,
        costs,
        settings.bootstrap,
        settings.seed,
        bits_per_byte=bits_per_byte(scores, bench),
        tokens_per_second=float(bench.lengths.sum()) / seconds,
        **more,
    )
    count, experts = len(scores.nats), len(bench.library.names)
    return Measurement(arm, scores.nats, Mix(np.zeros((count, experts), dtype=np.float32), np.zeros(count)))
