"""The gates that are compared, and the experts, records and losses that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from moe_router.data.slices import Slices
from moe_router.experts.adapters import Mixing, RoutedModel
from moe_router.experts.encode import Example, encode
from moe_router.experts.library import Library
from moe_router.experts.scoring import score_examples, score_routed
from moe_router.experts.train import Split
from moe_router.gate import baselines
from moe_router.gate.baselines.arrow import TEMPERATURES as ARROW_TEMPERATURES
from moe_router.gate.baselines.arrow import arrow
from moe_router.gate.baselines.end_to_end import Linear, end_to_end
from moe_router.gate.comparison import LEARNED, ORACLE, OWN
from moe_router.gate.fit import Measured
from moe_router.gate.gate import Gate
from moe_router.gate.losses import measure
from moe_router.gate.sight import open_sight
from moe_router.gate.train import expert_of_slice
from moe_router.gate.weights import keep_top, softmax
from moe_router.progress import Progress
from moe_router.workspace import Workspace

TEMPERATURES = baselines.MIXING_TEMPERATURES
LEARNED_MODES = {"top1": "learned, top-1", "top2": LEARNED, "soft": "learned, soft"}


@dataclass(frozen=True, eq=False)
class Queries:
    """The queries of a split, as a gate may see them."""

    split: Split
    measured: Measured
    examples: Sequence[Example]
    seen: np.ndarray  # (records, dimension), as the learned gate sees them

    def only(self, chosen: np.ndarray) -> Queries:
        """The records picked by index (records,)."""
        parts = self.split.only(chosen), self.measured.only(chosen), [self.examples[i] for i in chosen]
        return Queries(*parts, self.seen[chosen])


@dataclass(frozen=True)
class Contender:
    """A gate: queries and a temperature in, weights (queries, experts) out, or a route that chooses by token."""

    name: str
    source: str
    weigh: Callable[[Queries, float], np.ndarray | Mixing]
    temperatures: tuple[float, ...] = (1.0,)
    timed: bool = True


class Ground:
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
        self.library, self.gate, self.model, self.progress = library, gate, model, progress
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
        examples = encode(chosen.records, self.model.base, self.library.template, self.library.max_tokens)
        return Queries(replace(chosen, labels=place[chosen.labels]), measured, examples, self.sight.of(chosen))

    @cached_property
    def classifier(self) -> Linear:
        return baselines.slice_classifier(*self.trained, len(self.library.names), 10.0)

    @cached_property
    def trained_through(self) -> Linear:
        """The gate that is trained through the mixture, stopped by the tune split."""
        self.progress.stage("train a gate through the mixture")
        known = self.known

        def judge(gate: Linear) -> float:
            return float(self.nats(self.tune, _linear(gate, self.tune, 1.0)).sum())

        return end_to_end(self.model, known.examples, known.split.embeddings, self.classifier, judge)

    def contenders(self) -> list[Contender]:
        """All gates there are; those with weights of their own keep the two largest, as the learned one does."""
        experts, x, owners = len(self.library.names), *self.trained
        through = self.trained_through

        def own_slice(queries: Queries) -> np.ndarray:
            return (queries.split.embeddings @ self.centroids.T).argmax(1)

        def learned(mode: str) -> Callable[[Queries, float], np.ndarray]:
            return lambda q, _: self.gate.decide(q.seen, mode, abstain=False).weights

        def neighbours(q: Queries, temperature: float) -> np.ndarray:
            shares = baselines.nearest_neighbours(q.split.embeddings, x, owners, experts)
            return keep_top(softmax(np.log(shares + 1e-3) / temperature), 2)

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
            Contender("slice classifier", "logistic regression", lambda q, t: _linear(self.classifier, q, t), TEMPERATURES),
            Contender("end to end", "Hydra-β, MoLE", lambda q, t: _linear(through, q, t), TEMPERATURES),
            Contender(
                "Arrow, per token",
                "Ostapenko et al. 2024",
                lambda _, t: arrow(self.model, self.library.names, t),
                ARROW_TEMPERATURES,
                timed=False,
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

    def nats(self, queries: Queries, weights: np.ndarray | Mixing) -> np.ndarray:
        """Loss of each record under its mixture: (records,). Of one expert alone it is known already."""
        if not isinstance(weights, np.ndarray):
            return score_routed(self.model, queries.examples, lambda _: weights).nats
        alone = weights.max(1) == 1
        found = (weights * queries.measured.nats).sum(1)
        mixed = np.flatnonzero(~alone)
        if len(mixed):
            found[mixed] = score_examples(self.model, [queries.examples[i] for i in mixed], weights[mixed]).nats
        return found


def _linear(gate: Linear, queries: Queries, temperature: float) -> np.ndarray:
    """The two largest weights of a softmax over a linear map of the embedding: (queries, experts)."""
    weight, bias = gate
    return keep_top(softmax((queries.split.embeddings @ weight.T + bias) / temperature), 2)
