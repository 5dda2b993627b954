"""Training adapters into a library: the stage for a workspace's experts, and the part the report's rivals share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from moe_router.config import Config, ExpertsConfig
from moe_router.data.clusters import nearest_shares
from moe_router.data.records import Record, load_records
from moe_router.data.slices import Slices
from moe_router.errors import LibraryError
from moe_router.experts.adapters import SHARED
from moe_router.experts.base import Base, base_digest, load_base
from moe_router.experts.curves import PICTURE, Log, draw_losses
from moe_router.experts.encode import encode, stream
from moe_router.experts.library import INDEX, Library
from moe_router.experts.peft_format import Adapter, LoraSettings, load_adapter
from moe_router.experts.scoring import score_examples
from moe_router.experts.targets import restricted, targeted
from moe_router.experts.trainer import Checkpointing, Job, Schedule, Trainer
from moe_router.experts.watch import planned_tokens
from moe_router.experts.writing import card_of, clear, kept, trained_adapter, write_expert, write_index
from moe_router.memory import MASTER_BYTES, MOMENT_BYTES
from moe_router.progress import Progress, Silent
from moe_router.workspace import Workspace, digest_json

RATE_FACTORS = (0.5, 1.0, 2.0)
"""The learning-rate search tries these multiples of the configured rates."""
SEARCH_SHARE = 0.1
"""Share of the training tokens that the whole search may use."""
NEAREST = 16
"""Training records that tell where a gate is likely to send a query."""
OPERATION = ("checkpoint_seconds", "tensorboard", "experts_per_pass")
"""Settings that change how a training runs, not what comes of it."""
ADAPTER_SHARE = 0.6
"""Share of a GPU's free memory that adapters, gradients and moments may take; the rest is for activations."""


@dataclass(frozen=True)
class Split:
    """Records with the slice and the embedding of each."""

    records: Sequence[Record]
    labels: np.ndarray  # (records,) int64
    embeddings: np.ndarray  # (records, dimension) float32

    @classmethod
    def of(cls, workspace: Workspace, slices: Slices, split: str) -> Split:
        """Records of a workspace's split, in the workspace's order."""
        records = load_records(workspace.require(workspace.records, "prepare"))
        chosen = [i for i, record in enumerate(records) if record.split == split]
        return cls([records[i] for i in chosen], slices.labels[chosen], slices.embeddings[chosen])

    def only(self, chosen: np.ndarray) -> Split:
        """The records picked by index (records,)."""
        return Split([self.records[i] for i in chosen], self.labels[chosen], self.embeddings[chosen])


@dataclass(frozen=True)
class Plan:
    """What to train: one expert per name on the records of its label, and the shared one if the settings ask for it."""

    names: tuple[str, ...]
    train: Split
    tune: Split
    config: Config
    data_digest: str
    rows_per_step: int = 1
    """Rows of each expert in a step; a dense rival takes as many as the mixture has experts, for equal batches."""

    @property
    def inputs(self) -> str:
        """Digest of everything that decides the result."""
        settings = {name: value for name, value in asdict(self.config.experts).items() if name not in OPERATION}
        parts = [base_digest(self.config.base), self.config.data.template, settings]
        return digest_json([*parts, self.names, self.data_digest, self.rows_per_step])


def train_experts(workspace: Workspace, config: Config, progress: Progress | None = None, base: Base | None = None) -> Library:
    """Train one expert per slice, and the shared one, in one pass; write them to `workspace.experts`.

    Does nothing when the library there was made from the same base, data and settings. An interrupted run resumes.
    """
    slices = Slices.load(workspace)
    train, tune = (Split.of(workspace, slices, split) for split in ("train", "tune"))
    plan = Plan(slices.names, train, tune, config, slices.digest)
    checkpoint = workspace.checkpoints / "experts.safetensors"
    library = train_library(workspace.experts, plan, checkpoint, progress, base, title="train experts")
    picture = library.path / PICTURE
    if not picture.exists() or picture.stat().st_mtime < (library.path / INDEX).stat().st_mtime:
        draw_losses(library.cards, picture)
    return library


def train_library(
    path: Path,
    plan: Plan,
    checkpoint: Path,
    progress: Progress | None = None,
    base: Base | None = None,
    title: str = "train",
) -> Library:
    """Train what `plan` says into the library at `path`, or return the library there if it came from an equal plan."""
    progress = progress or Silent()
    if (path / INDEX).exists():
        library = Library.load(path)
        if library.inputs == plan.inputs:
            return library
    if base is None:
        progress.stage("load base")
        base = load_base(plan.config.base)
    experts = plan.config.experts
    searched = search_rates(base, plan, progress, title) if experts.search_rates else {}
    factor = min(searched, key=lambda f: searched[f]) if searched else 1.0
    cards: dict[str, dict[str, object]] = {}
    groups = passes(plan, base)
    files = [checkpoint if at == 0 else checkpoint.with_stem(f"{checkpoint.stem}-{at + 1}") for at in range(len(groups))]
    for group, file in zip(groups, files, strict=True):
        frozen = load_adapter(path / SHARED) if groups[0] == [SHARED] and group != [SHARED] else None
        trainer = make_trainer(base, plan, factor, only=group, frozen=frozen)
        with trainer.model:
            saving = Checkpointing(file, experts.checkpoint_seconds, digest_json([plan.inputs, group]))
            _train(trainer, saving, progress, title, experts.tensorboard)
            if len(groups) > 1:
                saving.save(trainer)  # should a later pass be interrupted, this one is not run again
            if not cards:
                clear(path)
            cards |= {name: write_expert(path / name, name, plan, trainer, searched) for name in kept(trainer)}
    library = write_index(path, plan, base, cards)
    for file in files:
        file.unlink(missing_ok=True)
    return library


def extend_library(
    library: Library, plan: Plan, name: str, checkpoint: Path, progress: Progress | None = None, base: Base | None = None
) -> Library:
    """Train one more expert, of the slice `name` of `plan`, and add it; every other file of the library stays as it is.

    The shared expert, if there is one, is on while it trains, and frozen. Raises LibraryError for a name that is taken,
    or a base or template other than the library's.
    """
    progress = progress or Silent()
    base = base or load_base(library.base)
    if name in library.names:
        raise LibraryError(f"expert {name!r} is there already: remove it first")
    if name not in plan.names:
        raise LibraryError(f"no slice {name!r} in this workspace: there are {', '.join(plan.names)}")
    if base.digest != library.base_digest or plan.config.data.template != library.template:
        raise LibraryError(
            f"{library.path} was trained with base {library.base.model!r} and template {library.template!r}: use both"
        )
    present = {member: library.adapter(member) for member in library.members}
    base = restricted(base, next(iter(present.values())).factors.keys())
    trainer = make_trainer(base, plan, only=[name], frozen=present.get(SHARED))
    digest = digest_json([plan.inputs, library.digest, name])
    with trainer.model:
        saving = Checkpointing(checkpoint, plan.config.experts.checkpoint_seconds, digest)
        _train(trainer, saving, progress, f"train {name}", plan.config.experts.tensorboard)
        beside = library.cards[SHARED]["sha256"] if library.has_shared else ""
        made = library.admit(name, trained_adapter(trainer, name), card_of(name, plan, trainer, {}, beside))
    checkpoint.unlink(missing_ok=True)
    return made


def passes(plan: Plan, base: Base) -> list[list[str]]:
    """The experts of each pass: all in one where the shared expert learns from every row.

    Else the shared one, if it comes first, and then as many routed ones at a time as are to be, or have to be.
    """
    experts, names = plan.config.experts, list(plan.names)
    if shared_settings(experts) and not experts.shared_first:
        return [names]
    size = experts.experts_per_pass or experts_that_fit(plan, base)
    first = [[SHARED]] if shared_settings(experts) else []
    return [*first, *(names[at : at + size] for at in range(0, len(names), size))]


def experts_that_fit(plan: Plan, base: Base) -> int:
    """How many experts train at once in the memory that is free beside the base; all where that is not known, at least one."""
    experts, device = plan.config.experts, base.device
    if device.type != "cuda":
        return len(plan.names)
    free, _ = torch.cuda.mem_get_info(device)
    layers = targeted(base, experts.targets).linears().values()
    one = (
        sum(layer.in_features + layer.out_features for layer in layers)
        * experts.rank
        * (2 * MASTER_BYTES + MOMENT_BYTES[experts.optimizer])
    )
    return max(1, min(len(plan.names), int(free * ADAPTER_SHARE) // one))


def _train(trainer: Trainer, saving: Checkpointing, progress: Progress, title: str, logged: bool) -> None:
    progress.stage(title, sum(planned_tokens(trainer)))
    log = Log(saving.path.parent.parent / "logs" / saving.path.stem) if logged else None
    try:
        trainer.run(saving, progress, log)
    finally:
        if log:
            log.close()


def search_rates(base: Base, plan: Plan, progress: Progress, title: str) -> dict[float, float]:
    """Tune-split perplexity after a short training at each multiple of the configured learning rates.

    The mixture is judged as it is likely to be served, by `likely_mixtures`. All runs together see at most SEARCH_SHARE of the
    training tokens.
    """
    experts = plan.config.experts
    progress.stage(f"{title}: learning rate", len(RATE_FACTORS))
    examples = encode(plan.tune.records, base, plan.config.data.template, experts.max_tokens)
    weights = likely_mixtures(plan.train, plan.tune, len(plan.names))
    found: dict[float, float] = {}
    for factor in RATE_FACTORS:
        trainer = make_trainer(base, plan, factor, experts.epochs * SEARCH_SHARE / len(RATE_FACTORS))
        with trainer.model as model:
            trainer.run()
            failed = all(trainer.outcomes[name].failed for name in plan.names)
            found[factor] = float("inf") if failed else float(score_examples(model, examples, weights).perplexity)
        progress.advance(1, f"×{factor:g}: {found[factor]:.2f}")
    return found


def likely_mixtures(train: Split, asked: Split, experts: int) -> np.ndarray:
    """About what a gate will choose, before there is one: the two slices that most of the nearest training records have.

    Judged on every record's own slice alone, experts that learn slowly look best, since they differ little from the shared
    one; a gate makes more of those that differ (docs/experiments.md). *Shape:* → (asked records, experts) float32.
    """
    shares = nearest_shares(asked.embeddings, train.embeddings, train.labels, experts, NEAREST)
    shares[np.argsort(np.argsort(-shares, axis=1, kind="stable"), axis=1) > 1] = 0
    return shares / shares.sum(1, keepdims=True)


def lora_settings(config: ExpertsConfig, rank: int) -> LoraSettings:
    """LoRA settings of an adapter of `rank` under this recipe."""
    return LoraSettings(rank, config.alpha, config.rslora)


def shared_settings(config: ExpertsConfig, rate_factor: float = 1.0) -> tuple[LoraSettings, float] | None:
    """The shared expert's LoRA settings and learning rate; None where the recipe has no shared expert."""
    if config.mode != "shared" or not config.shared_rank:
        return None
    return lora_settings(config, config.shared_rank), config.shared_learning_rate * rate_factor


def schedule_of(config: ExpertsConfig) -> Schedule:
    """What a recipe says of the pass as a whole."""
    return Schedule(
        epochs=config.epochs,
        steps=config.steps,
        row_tokens=config.row_tokens,
        micro_tokens=config.micro_tokens,
        warmup=config.warmup,
        decay=config.schedule,
        optimizer=config.optimizer,
        weight_decay=config.weight_decay,
        clip=config.clip,
        dropout=config.dropout,
        recompute=config.gradient_checkpointing,
        evaluate_every=config.evaluate_every,
        patience=config.patience,
        start=config.start,
        seed=config.seed,
    )


def make_trainer(
    base: Base,
    plan: Plan,
    rate_factor: float = 1.0,
    epochs: float | None = None,
    only: Sequence[str] | None = None,
    frozen: Adapter | None = None,
) -> Trainer:
    """A trainer for the plan, its learning rates multiplied by `rate_factor`.

    `epochs` overrides the recipe's length, `only` names some of the plan's experts, or the shared one alone, and `frozen` is a
    shared expert that is trained already.
    """
    config = plan.config.experts
    train, tune = (
        encode(split.records, base, plan.config.data.template, config.max_tokens) for split in (plan.train, plan.tune)
    )
    schedule = schedule_of(config)
    if epochs is not None:
        schedule = replace(schedule, epochs=epochs, steps=0, evaluate_every=0, start="kaiming")
    if only == [SHARED]:
        job = Job(
            name=SHARED,
            examples=train,
            settings=lora_settings(config, config.shared_rank),
            learning_rate=config.shared_learning_rate * rate_factor,
            rows_per_step=plan.rows_per_step * config.rows_per_step * len(plan.names),
            identity=[record.id for record in plan.train.records],
            tune=tune if config.evaluate_every else (),
        )
        return Trainer(targeted(base, config.targets), [job], schedule)
    jobs = []
    for index, name in enumerate(plan.names):
        if only is not None and name not in only:
            continue
        own = [*np.flatnonzero(plan.train.labels == index).tolist(), *replayed(plan, index)]
        jobs.append(
            Job(
                name=name,
                examples=[train[i] for i in own],
                settings=lora_settings(config, config.rank),
                learning_rate=config.learning_rate * rate_factor,
                rows_per_step=plan.rows_per_step * config.rows_per_step,
                identity=[plan.train.records[i].id for i in own],
                tune=[tune[i] for i in np.flatnonzero(plan.tune.labels == index)] if config.evaluate_every else (),
            )
        )
    shared = None if frozen else shared_settings(config, rate_factor)
    return Trainer(targeted(base, config.targets), jobs, schedule, shared, frozen)


def replayed(plan: Plan, index: int) -> list[int]:
    """Records of other slices that the slice at `index` sees as well: drawn once, by seed and name."""
    config = plan.config.experts
    others = np.flatnonzero(plan.train.labels != index)
    count = min(len(others), round(config.replay * int((plan.train.labels == index).sum())))
    if not count or config.mode == "isolated":
        return []
    return sorted(stream(config.seed, plan.names[index], "replay").choice(others, count, replace=False).tolist())
