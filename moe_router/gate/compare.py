"""Every gate on the same experts and test records: the learned one, the published ones, controls and bounds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from moe_router.data.slices import Slices
from moe_router.experts.adapters import RoutedModel
from moe_router.experts.base import load_base
from moe_router.experts.library import Library
from moe_router.gate.baselines import search_temperature
from moe_router.gate.comparison import LEARNED, ORACLE, OWN, Comparison, Interval, Row
from moe_router.gate.contenders import Contender, Ground
from moe_router.gate.gate import Gate
from moe_router.progress import Progress, Silent
from moe_router.workspace import Workspace

TIMED = 50
"""Single queries behind a latency."""
RESAMPLES = 1000


def compare_gates(workspace: Workspace, progress: Progress | None = None, model: RoutedModel | None = None) -> Comparison:
    """Measure every gate on the test split of a workspace whose gate is trained; τ of each is searched on the tune split.

    Raises WorkspaceError or LibraryError when a stage before it is missing.
    """
    progress = progress or Silent()
    library, slices = Library.load(workspace.experts), Slices.load(workspace)
    gate = Gate.load(workspace.experts, library)
    opened = model or library.open(load_base(library.base))
    try:
        ground = Ground(workspace, library, slices, gate, opened, progress)
        contenders = ground.contenders()
        progress.stage("compare gates", len(contenders))
        found = {}
        for contender in contenders:
            found[contender.name] = run(ground, contender)
            progress.advance(1)
    finally:
        if model is None:
            opened.detach()
    return compared(ground, contenders, found)


class Found(NamedTuple):
    """What a gate came to on the test records."""

    nats: np.ndarray  # (records,)
    temperature: float | None
    milliseconds: float | None


def run(ground: Ground, contender: Contender) -> Found:
    """Search the temperature, weigh the test records, score them, and time single queries."""
    best, searched = contender.temperatures[0], len(contender.temperatures) > 1
    if searched:
        best, _ = search_temperature(
            contender.temperatures,
            lambda t: contender.weigh(ground.tune, t),
            lambda weights: float(ground.nats(ground.tune, weights).sum()),
        )
    nats = ground.nats(ground.test, contender.weigh(ground.test, best))
    return Found(nats, best if searched else None, _milliseconds(ground, contender, best) if contender.timed else None)


def _milliseconds(ground: Ground, contender: Contender, temperature: float) -> float:
    single = [ground.test.only(np.array([i])) for i in range(min(TIMED, len(ground.test.split.records)))]
    spent = []
    for query in single:
        start = time.perf_counter()
        contender.weigh(query, temperature)
        spent.append(time.perf_counter() - start)
    return 1e3 * float(np.median(spent))


def compared(ground: Ground, contenders: Sequence[Contender], found: Mapping[str, Found]) -> Comparison:
    """All rows with their intervals, best first."""
    tokens = ground.test.measured.tokens
    counts = np.random.default_rng(0).multinomial(len(tokens), np.full(len(tokens), 1 / len(tokens)), RESAMPLES)
    learned, oracle, own = (found[name].nats for name in (LEARNED, ORACLE, OWN))

    def against(nats: np.ndarray) -> Interval:
        return _middle(np.expm1(counts @ (nats - learned) / (counts @ tokens)))

    rows = [
        Row(
            name=each.name,
            source=each.source,
            perplexity=float(np.exp(found[each.name].nats.sum() / tokens.sum())),
            of_oracle=float(np.exp((oracle - found[each.name].nats).sum() / tokens.sum())),
            regret=float((found[each.name].nats - oracle).sum() / tokens.sum()),
            against_learned=against(found[each.name].nats),
            milliseconds=found[each.name].milliseconds,
            temperature=found[each.name].temperature,
        )
        for each in contenders
    ]
    room = np.maximum(counts @ (own - oracle), 1e-9)
    return Comparison(
        rows=tuple(sorted(rows, key=lambda row: row.perplexity)),
        records=len(tokens),
        recovered=float((own - learned).sum() / max((own - oracle).sum(), 1e-9)),
        recovered_interval=_middle(counts @ (own - learned) / room),
    )


def _middle(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))
