"""How long a report will take, said before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_router.errors import LibraryError
from moe_router.experts.library import INDEX, Library
from moe_router.experts.scoring import score_examples
from moe_router.experts.train import SEARCH_SHARE
from moe_router.report.bench import Bench
from moe_router.report.full import CARD
from moe_router.report.measure import trained_tokens
from moe_router.report.pool import Pool, plan_of
from moe_router.report.registry import ARMS
from moe_router.report.repeats import SHARES

TRAINING_RATIO = 4.0
"""Seconds of training a token over those of scoring one, as measured on two CPU cores (docs/demo.md)."""
ANSWERING_RATIO = 12.0
"""Seconds of generating a token, many answers at a time, over those of scoring one."""
PROBE_TOKENS = 2000


@dataclass(frozen=True)
class Estimate:
    """What is about to be done, in seconds on this machine."""

    training: float
    scoring: float
    answering: float
    to_train: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return self.training + self.scoring + self.answering

    def line(self, budget: str) -> str:
        """For the terminal: how long, and what takes it."""
        minutes = self.seconds / 60
        shown = f"{minutes:.0f} min" if minutes >= 2 else f"{self.seconds:.0f} s"
        trains = f"; trains {', '.join(self.to_train)}" if self.to_train else "; trains nothing"
        return f"report ({budget}): about {shown} on this machine{trains}"


def estimate(pool: Pool, names: Sequence[str], answers: int, answer_tokens: int) -> Estimate:
    """From the speed of scoring a few test records now. `answers` are those of each answering arm."""
    bench = pool.bench
    pace = seconds_per_token(pool)
    missing = tuple(name for name in names if not _trained(bench, name))
    repeated = 2 * (bench.config.report.seeds - 1) + bench.config.report.curve * 2 * sum(SHARES)
    searched = 1 + SEARCH_SHARE * bench.config.experts.search_rates
    refitted = sum(pool.experts * (bench.tokens("gate") + bench.tokens("tune")) for name in names if _refits(name))
    scored = (len(names) + pool.experts) * bench.tokens("test") + 5 * bench.tokens("tune") + refitted
    answering = sum(ARMS[name].answers for name in names) * answers
    return Estimate(
        training=pace * TRAINING_RATIO * (len(missing) + repeated) * trained_tokens(pool) * searched,
        scoring=pace * scored,
        answering=pace * ANSWERING_RATIO * answering * answer_tokens,
        to_train=missing,
    )


def seconds_per_token(pool: Pool) -> float:
    """Measured on the first test records, after one pass to warm up."""
    wanted = int(np.searchsorted(np.cumsum(pool.bench.lengths), PROBE_TOKENS)) + 1
    examples = pool.bench.examples[:wanted]
    weights = np.eye(pool.experts, dtype=np.float32)[np.zeros(len(examples), dtype=int)]
    for _ in range(2):
        start = time.perf_counter()
        score_examples(pool.model, examples, weights)
        seconds = time.perf_counter() - start
    return seconds / sum(len(e.tokens) for e in examples)


def _refits(name: str) -> bool:
    training = ARMS[name].training
    return training is not None and training.split != "one"


def _trained(bench: Bench, name: str) -> bool:
    """Whether an arm's adapters are there already, from an equal plan."""
    training, path = ARMS[name].training, bench.workspace.arms / name
    if name == "full":
        return (path / CARD).exists()
    if training is None:
        return True
    try:
        return (path / INDEX).exists() and Library.load(path).inputs == plan_of(bench, training).inputs
    except LibraryError:
        return False
