"""Every gate on the same experts and test records: the learned one, the published ones, controls and bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from moe_router.data.slices import Slices
from moe_router.experts.adapters import RoutedModel
from moe_router.experts.base import load_base
from moe_router.experts.library import Library
from moe_router.experts.scoring import score
from moe_router.experts.train import Split
from moe_router.gate import baselines
from moe_router.gate.baselines.arrow import affinities
from moe_router.gate.comparison import LEARNED, Comparison, Interval, Row
from moe_router.gate.fit import Measured
from moe_router.gate.gate import Gate
from moe_router.gate.losses import measure
from moe_router.gate.sight import open_sight
from moe_router.gate.train import expert_of_slice
from moe_router.gate.weights import keep_top, softmax
from moe_router.progress import Progress, Silent
from moe_router.workspace import Workspace

TEMPERATURES = baselines.MIXING_TEMPERATURES
TIMED = 50
"""Single queries behind a latency."""
RESAMPLES = 1000
LEARNED_MODES = {"top1": "learned, top-1", "top2": LEARNED, "soft": "learned, soft"}
OWN, ORACLE = "own slice", "oracle"


@dataclass(frozen=True, eq=False)
class Queries:
    """The queries of a split, as a gate may see them."""

    split: Split
    measured: Measured
    seen: np.ndarray  # (records, dimension), as the learned gate sees them
    affinities: np.ndarray  # (records, experts), Arrow's

    def only(self, chosen: np.ndarray) -> Queries:
        """The records picked by index (records,)."""
        parts = self.split.only(chosen), self.measured.only(chosen)
        return Queries(*parts, self.seen[chosen], self.affinities[chosen])


@dataclass(frozen=True)
class Contender:
    """A gate: queries and a temperature in, weights (queries, experts) out."""

    name: str
    source: str
    weigh: Callable[[Queries, float], np.ndarray]
    temperatures: tuple[float, ...] = (1.0,)
    timed: bool = True


def compare_gates(workspace: Workspace, progress: Progress | None = None, model: RoutedModel | None = None) -> Comparison:
    """Measure every gate on the test split of a workspace whose gate is trained; τ of each is searched on the tune split.

    Raises WorkspaceError or LibraryError when a stage before it is missing.
    """
    progress = progress or Silent()
    library, slices = Library.load(workspace.experts), Slices.load(workspace)
    gate = Gate.load(workspace.experts, library)
    opened = model or library.open(load_base(library.base))
    try:
        bench = Bench(workspace, library, slices, gate, opened, progress)
        contenders = bench.contenders()
        progress.stage("compare gates", len(contenders))
        found = {}
        for contender in contenders:
            found[contender.name] = bench.run(contender)
            progress.advance(1)
    finally:
        if model is None:
            opened.detach()
    return bench.compared(contenders, found)


class Found(NamedTuple):
    """What a gate came to on the test records."""

    nats: np.ndarray  # (records,)
    temperature: float | None
    milliseconds: float | None


class Bench:
    """Experts, records and losses that all gates share."""

    def __init__(
        self,
        workspace: Workspace,
        library: Library,
        slices: Slices,
        gate: Gate,
        model: RoutedModel,
        progress: Progress,
    ) -> None:
        self.library, self.gate, self.model = library, gate, model
        self.sight = open_sight(gate, library, model.base)
        place = expert_of_slice(library, slices)
        self.centroids = np.stack([slices.centroids[place == i][0] for i in range(len(library.names))])
        self.tune, self.test, self.known = (
            self._queries(workspace, slices, split, place, progress) for split in ("tune", "test", "gate")
        )
        train = Split.of(workspace, slices, "train")
        kept = place[train.labels] >= 0
        self.trained = train.embeddings[kept], place[train.labels[kept]]

    def _queries(self, workspace: Workspace, slices: Slices, split: str, place: np.ndarray, progress: Progress) -> Queries:
        whole = Split.of(workspace, slices, split)
        kept = np.flatnonzero(place[whole.labels] >= 0)
        chosen = whole.only(kept)
        measured = measure(workspace, self.library, slices, split, self.model, progress).only(kept)
        arrow = affinities(self.model, self.library.names, chosen.records, self.library.template)
        return Queries(replace(chosen, labels=place[chosen.labels]), measured, self.sight.of(chosen), arrow)

    @cached_property
    def classifier(self) -> tuple[np.ndarray, np.ndarray]:
        return baselines.slice_classifier(*self.trained, len(self.library.names), 10.0)

    def contenders(self) -> list[Contender]:
        """All gates there are; those with weights of their own keep the two largest, as the learned one does."""
        experts, x, owners = len(self.library.names), *self.trained
        weight, bias = self.classifier

        def own_slice(queries: Queries) -> np.ndarray:
            return (queries.split.embeddings @ self.centroids.T).argmax(1)

        def learned(mode: str) -> Callable[[Queries, float], np.ndarray]:
            return lambda q, _: self.gate.decide(q.seen, mode, abstain=False).weights

        def neighbours(q: Queries, temperature: float) -> np.ndarray:
            shares = baselines.nearest_neighbours(q.split.embeddings, x, owners, experts)
            return keep_top(softmax(np.log(shares + 1e-3) / temperature), 2)

        def labels(q: Queries, temperature: float) -> np.ndarray:
            return keep_top(softmax((q.split.embeddings @ weight.T + bias) / temperature), 2)

        measured, nearest = self.known.measured, own_slice(self.known)
        return [
            *(Contender(shown, "this gate", learned(mode)) for mode, shown in LEARNED_MODES.items()),
            Contender(
                "c-BTM",
                "Gururangan et al. 2023",
                lambda q, t: baselines.cbtm(q.split.embeddings, self.centroids, t),
                baselines.CENTROID_TEMPERATURES,
            ),
            Contender("nearest records", "airoboros LMoE", neighbours, TEMPERATURES),
            Contender("slice classifier", "logistic regression", labels, TEMPERATURES),
            Contender(
                "Arrow", "Ostapenko et al. 2024", lambda q, t: keep_top(softmax(q.affinities / t), 2), TEMPERATURES, False
            ),
            Contender(OWN, "c-BTM, top-1", lambda q, _: baselines.one_expert(own_slice(q), experts)),
            Contender(
                "best fixed expert of slice",
                "control",
                lambda q, _: baselines.best_fixed(own_slice(q), measured.nats, nearest),
            ),
            Contender("uniform", "control", lambda q, _: baselines.uniform(len(q.split.records), experts)),
            Contender("random", "control", lambda q, _: baselines.random_gate(len(q.split.records), experts, 0)),
            Contender("shuffled", "control", lambda q, t: baselines.shuffled(learned("top2")(q, t), 0), timed=False),
            Contender(ORACLE, "bound", lambda q, _: baselines.oracle(q.measured.nats), timed=False),
        ]

    def run(self, contender: Contender) -> Found:
        """Search the temperature, weigh the test records, score them, and time single queries."""
        best, searched = contender.temperatures[0], len(contender.temperatures) > 1
        if searched:
            best, _ = baselines.search_temperature(
                contender.temperatures,
                lambda t: contender.weigh(self.tune, t),
                lambda weights: float(self.nats(self.tune, weights).sum()),
            )
        nats = self.nats(self.test, contender.weigh(self.test, best))
        return Found(nats, best if searched else None, self._milliseconds(contender, best) if contender.timed else None)

    def nats(self, queries: Queries, weights: np.ndarray) -> np.ndarray:
        """Loss of each record under its mixture: (records,). Of one expert alone it is known already."""
        alone = weights.max(1) == 1
        found = (weights * queries.measured.nats).sum(1)
        mixed = np.flatnonzero(~alone)
        if len(mixed):
            records = [queries.split.records[i] for i in mixed]
            made = score(
                self.model, records, weights[mixed], template=self.library.template, max_tokens=self.library.max_tokens
            )
            found[mixed] = made.nats
        return found

    def _milliseconds(self, contender: Contender, temperature: float) -> float:
        single = [self.test.only(np.array([i])) for i in range(min(TIMED, len(self.test.split.records)))]
        spent = []
        for query in single:
            start = time.perf_counter()
            contender.weigh(query, temperature)
            spent.append(time.perf_counter() - start)
        return 1e3 * float(np.median(spent))

    def compared(self, contenders: Sequence[Contender], found: dict[str, Found]) -> Comparison:
        """All rows with their intervals, best first."""
        tokens = self.test.measured.tokens
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
