"""A pool of adapters on the base: the library's own, or those that an arm trains for itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from moe_router.config import BaseConfig
from moe_router.experts.adapters import RoutedModel
from moe_router.experts.library import Library
from moe_router.experts.scoring import Scores, expert_scores, score_examples
from moe_router.experts.train import Plan, Split, train_library
from moe_router.gate.fit import Measured
from moe_router.gate.gate import Gate
from moe_router.gate.losses import measure
from moe_router.gate.sight import open_sight
from moe_router.progress import Progress
from moe_router.report import costs
from moe_router.report.bench import Bench
from moe_router.report.merge import merge_library
from moe_router.report.registry import Kind, Training, active_rank, shared_rank
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
    """What it was trained by; None for the workspace's own library, and for its experts merged."""

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

    @cached_property
    def seen(self) -> np.ndarray:
        """The test queries as the workspace's gate sees them: (records, dimension)."""
        return open_sight(self.gate, self.bench.library, self.bench.base).of(self.bench.test)

    @property
    def seeing_flops(self) -> float | None:
        """What it takes to see a query where the gate reads the base's states; None where it sees the embedding alone."""
        view, shape, bench = self.gate.view, self.bench.shape, self.bench
        if not view.layer:
            return None
        each = costs.base_flops_per_token(shape, bench.context, 0) * view.layer / shape.layers
        states = each * float((bench.lengths - bench.target_tokens).mean())
        return states if view.features == "hidden" else states + bench.embedding_flops

    def measured(self, split: str) -> Measured:
        """Every expert's loss on the gate or tune split; the library's are kept beside it from fitting the gate."""
        bench = self.bench
        if self.library is bench.library:
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
def open_pool(bench: Bench, name: str, kind: Kind, gate: Gate, progress: Progress, further: int = 0) -> Iterator[Pool]:
    """The adapters of an arm's kind: the library's, those merged, or its own, which are kept under `name`.

    What is not there yet is made now. `further` is added to the training seed.
    """
    library, plan, path = bench.library, None, bench.workspace.arms / name
    if kind.merged:
        rank = active_rank(library) - shared_rank(library)
        library = merge_library(path, library, kind.merged, rank, progress, bench.seed)
    elif kind.training is not None:
        plan = plan_of(bench, kind.training, further)
        if kind.training.base:
            progress.note(f"{name}: loading base {plan.config.base.model!r}, quantization {plan.config.base.quantization}")
            bench = bench.on(plan.config.base)
        checkpoint = bench.workspace.checkpoints / f"{name}.safetensors"
        title = f"train {name} (rank {plan.config.experts.rank})"
        library = train_library(path, plan, checkpoint, progress, bench.base, title=title)
    with library.open(bench.base) as model:
        yield Pool(bench, library, model, gate, progress, plan)


def base_of(bench: Bench, training: Training) -> BaseConfig:
    """The base that an arm is trained on."""
    base = bench.library.base
    if training.base == "larger":
        return replace(base, model=bench.config.report.larger_base)
    return replace(base, quantization="none") if training.base == "16-bit" else base


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
        epochs=experts.epochs * training.share,
        steps=round(experts.steps * training.share),
    )
    names = bench.library.names
    if training.split == "random":
        names = tuple(f"random-{i + 1}" for i in range(len(names)))
    return Plan(
        names=("dense",) if one else names,
        train=_divided(bench.owned(bench.train), training.split, bench.seed),
        tune=_divided(bench.owned(bench.tune), training.split, bench.seed),
        config=replace(bench.config, base=base_of(bench, training), experts=recipe),
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
