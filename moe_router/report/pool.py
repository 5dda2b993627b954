"""A pool of adapters on the base: the library's own, or those that an arm trains for itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from moe_router.experts.adapters import RoutedModel
from moe_router.experts.library import Library
from moe_router.experts.scoring import Scores, expert_scores, score_examples
from moe_router.experts.train import Plan, Split, train_library
from moe_router.gate.fit import Measured
from moe_router.gate.gate import Gate
from moe_router.gate.losses import measure
from moe_router.progress import Progress
from moe_router.report.bench import Bench
from moe_router.report.registry import Training, shared_rank
from moe_router.workspace import digest_json


@dataclass(frozen=True, eq=False)
class Pool:
    """Adapters attached to the base, with what it takes to mix them."""

    bench: Bench
    library: Library
    model: RoutedModel
    gate: Gate
    """The workspace's, whatever the pool."""
    progress: Progress
    plan: Plan | None = None
    """What it was trained by; None for the workspace's own library."""

    @property
    def count(self) -> int:
        """Test records."""
        return len(self.bench.test.records)

    @property
    def experts(self) -> int:
        return len(self.library.names)

    @cached_property
    def alone(self) -> Scores:
        """Every expert alone (with the shared one) on the test records: nats (records, experts)."""
        return self._alone(self.bench.test)

    def measured(self, split: str) -> Measured:
        """Every expert's loss on the gate or tune split; the library's are kept beside it from fitting the gate."""
        bench = self.bench
        if self.plan is None:
            return measure(bench.workspace, self.library, bench.slices, split, self.model, self.progress)
        chosen: Split = getattr(bench, split)
        found = self._alone(chosen)
        return Measured(chosen.embeddings, found.nats, found.tokens)

    def tune_nats(self, weights: np.ndarray) -> float:
        """Loss of the tune split under weights (records, experts)."""
        return float(score_examples(self.model, self.bench.tune_examples, weights).nats.sum())

    def _alone(self, split: Split) -> Scores:
        return expert_scores(self.model, split.records, template=self.library.template, max_tokens=self.library.max_tokens)


@contextlib.contextmanager
def open_pool(
    bench: Bench, name: str, training: Training | None, gate: Gate, progress: Progress, further: int = 0
) -> Iterator[Pool]:
    """The library's adapters, or those of `training`, kept under `name` and trained now if they are not there yet.

    `further` is added to the training seed.
    """
    library, plan = bench.library, None
    if training is not None:
        plan = plan_of(bench, training, further)
        checkpoint = bench.workspace.checkpoints / f"{name}.safetensors"
        title = f"train {name} (rank {plan.config.experts.rank})"
        library = train_library(bench.workspace.arms / name, plan, checkpoint, progress, bench.base, title=title)
    with library.open(bench.base) as model:
        yield Pool(bench, library, model, gate, progress, plan)


def plan_of(bench: Bench, training: Training, further: int = 0) -> Plan:
    """The library's recipe, records and tokens, divided as the arm says.

    A single adapter takes as many rows in a step as the mixture has experts, for equal batches.
    """
    one = training.split == "one"
    experts = bench.config.experts
    shared = training.shared and bench.library.has_shared
    recipe = replace(
        experts,
        mode="shared" if shared else "isolated",
        rank=training.rank(bench.library),
        shared_rank=shared_rank(bench.library) if shared else experts.shared_rank,
        learning_rate=experts.dense_learning_rate if one else experts.learning_rate,
        seed=experts.seed + further,
    )
    names = bench.library.names
    if training.split == "random":
        names = tuple(f"random-{i + 1}" for i in range(len(names)))
    return Plan(
        names=("dense",) if one else names,
        train=_divided(bench.owned(bench.train), training.split, bench.seed),
        tune=_divided(bench.owned(bench.tune), training.split, bench.seed),
        config=replace(bench.config, base=bench.library.base, experts=recipe),
        data_digest=digest_json([bench.slices.digest, bench.library.names]),
        rows_per_step=len(bench.library.names) if one else 1,
    )


def _divided(split: Split, how: str, seed: int) -> Split:
    """The records with the labels that an arm trains on: all one, the slices, or slices dealt out at random."""
    if how == "one":
        return replace(split, labels=np.zeros_like(split.labels))
    if how == "random":
        return replace(split, labels=np.random.default_rng(seed).permutation(split.labels))
    return split
