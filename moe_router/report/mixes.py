"""How each arm mixes the experts: a `Mix` for the test records from a `Pool` of adapters, one short function each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_router.gate import baselines
from moe_router.gate.features import Memory
from moe_router.gate.fit import fit_gate
from moe_router.gate.gate import MODES, keep_top, softmax

if TYPE_CHECKING:
    from moe_router.report.pool import Pool


MERGE_STRENGTHS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Mix:
    """The mixture of every test record."""

    weights: np.ndarray  # (records, experts)
    shared: np.ndarray  # (records,)
    compared: int = 0
    """Vectors that a query's embedding is multiplied with in order to choose; 0 for an arm that embeds nothing."""
    measured_tokens: int = 0
    """Tokens read through base and experts to settle how to choose."""
    seeing_flops: float | None = None
    """Of what the gate sees of a query, where that is not the sentence embedding alone."""


Mixer = Callable[["Pool"], Mix]


def nothing(pool: Pool) -> Mix:
    """The base alone."""
    return Mix(np.zeros((pool.count, pool.experts), dtype=np.float32), np.zeros(pool.count))


def shared_alone(pool: Pool) -> Mix:
    """The always-on expert and no other."""
    return Mix(np.zeros((pool.count, pool.experts), dtype=np.float32), np.ones(pool.count))


def uniform(pool: Pool) -> Mix:
    """Every expert alike; with one adapter that is the adapter itself."""
    return Mix(baselines.uniform(pool.count, pool.experts), np.ones(pool.count))


def routed(mode: str) -> Mixer:
    """The trained gate in one of its modes, never abstaining."""

    def mix(pool: Pool) -> Mix:
        return _gated(pool, pool.gate.decide(pool.seen, mode, abstain=False).weights)

    return mix


def shuffled(pool: Pool) -> Mix:
    """The gate's top-2 rows dealt to other queries."""
    return _gated(pool, baselines.shuffled(routed("top2")(pool).weights, pool.bench.seed))


def refitted(pool: Pool) -> Mix:
    """Top-2 routes of a gate fitted to these experts as the trained gate was to the library's."""
    bench = pool.bench
    trained = pool.plan.train
    memory = Memory.of(trained.embeddings, trained.labels, bench.seed)
    fit = fit_gate(memory, pool.measured("gate"), pool.measured("tune"))

    def weights_at(embeddings: np.ndarray, temperature: float) -> np.ndarray:
        return keep_top(softmax(fit.logits(embeddings) / temperature), MODES["top2"]).astype(np.float32)

    best, _ = baselines.search_temperature(
        baselines.MIXING_TEMPERATURES, lambda t: weights_at(bench.tune.embeddings, t), pool.tune_nats
    )
    return _gated(pool, weights_at(bench.test.embeddings, best), len(memory.queries))


def cbtm(pool: Pool) -> Mix:
    """c-BTM: softmax over the similarity to slice centroids; its temperature gets the gate's search on the tune split."""
    bench, candidates = pool.bench, baselines.CENTROID_TEMPERATURES

    def weights_at(embeddings: np.ndarray, temperature: float) -> np.ndarray:
        return baselines.cbtm(embeddings, bench.centroids, temperature)

    best, _ = baselines.search_temperature(candidates, lambda t: weights_at(bench.tune.embeddings, t), pool.tune_nats)
    weights = weights_at(bench.test.embeddings, best)
    return Mix(weights, np.ones(pool.count), pool.experts, len(candidates) * bench.tokens("tune"))


def best_fixed(pool: Pool) -> Mix:
    """For each slice the expert with the lowest loss on the gate's records of it."""
    bench, found = pool.bench, pool.measured("gate")
    weights = baselines.best_fixed(bench.labels, found.nats, bench.nearest(found.embeddings))
    return Mix(weights, np.ones(pool.count), pool.experts, pool.experts * bench.tokens("gate"))


def nearest_neighbours(pool: Pool) -> Mix:
    """Share of each slice among the nearest training records."""
    bench = pool.bench
    weights = baselines.nearest_neighbours(bench.test.embeddings, *bench.train_places, pool.experts)
    return Mix(weights, np.ones(pool.count), len(bench.train.records))


def label_classifier(pool: Pool) -> Mix:
    """The two likeliest slices under a logistic regression of the slice, which measures no expert."""
    bench = pool.bench
    weights = baselines.cluster_label(bench.test.embeddings, *bench.train_places, pool.experts)
    return Mix(keep_top(weights, MODES["top2"]), np.ones(pool.count), pool.experts)


def at_random(pool: Pool) -> Mix:
    """One expert per query, drawn evenly."""
    return Mix(baselines.random_gate(pool.count, pool.experts, pool.bench.seed), np.ones(pool.count))


def oracle(pool: Pool) -> Mix:
    """The expert that turned out best for each record."""
    return Mix(baselines.oracle(pool.alone.nats), np.ones(pool.count))


def merged(pool: Pool) -> Mix:
    """The merged adapter, scaled by the strength that loses least on the tune split, as the merging methods ask."""
    best, _ = baselines.search_temperature(
        MERGE_STRENGTHS, lambda s: np.full((len(pool.bench.tune.records), 1), s, dtype=np.float32), pool.tune_nats
    )
    searched = len(MERGE_STRENGTHS) * pool.bench.tokens("tune")
    return Mix(np.full((pool.count, 1), best, dtype=np.float32), np.ones(pool.count), 0, searched)


def _gated(pool: Pool, weights: np.ndarray, remembered: int | None = None) -> Mix:
    """A gate's routes with what choosing costs: its rows, its memory, and the measuring it was fitted on."""
    bench = pool.bench
    remembered = len(pool.gate.memory.queries) if remembered is None else remembered
    searched = len(baselines.MIXING_TEMPERATURES) * bench.tokens("tune")
    measured = pool.experts * (bench.tokens("gate") + bench.tokens("tune")) + searched
    seeing = pool.seeing_flops if pool.library is bench.library else None
    return Mix(weights, np.ones(pool.count), pool.experts + remembered, measured, seeing)
