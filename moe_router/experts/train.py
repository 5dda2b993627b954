"""Training adapters into a library: the stage for a workspace's experts, and the part the report's rivals share."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from moe_router.config import Config, ExpertsConfig
from moe_router.data.records import Record, load_records
from moe_router.data.slices import Slices
from moe_router.data.templates import template
from moe_router.experts.adapters import SHARED
from moe_router.experts.base import Base, base_digest, load_base
from moe_router.experts.encode import encode
from moe_router.experts.library import CARD, INDEX, Library, checksum
from moe_router.experts.peft_format import LoraSettings, save_adapter
from moe_router.experts.scoring import score_examples
from moe_router.experts.trainer import Checkpointing, Job, Schedule, Trainer
from moe_router.progress import Progress, Silent
from moe_router.workspace import Workspace, digest_json, write_json

RATE_FACTORS = (0.5, 1.0, 2.0)
"""The learning-rate search tries these multiples of the configured rates."""
SEARCH_SHARE = 0.1
"""Share of the training tokens that the whole search may use."""


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
        parts = [base_digest(self.config.base), self.config.data.template, asdict(self.config.experts)]
        return digest_json([*parts, self.names, self.data_digest, self.rows_per_step])


def train_experts(workspace: Workspace, config: Config, progress: Progress | None = None, base: Base | None = None) -> Library:
    """Train one expert per slice, and the shared one, in one pass; write them to `workspace.experts`.

    Does nothing when the library there was made from the same base, data and settings. An interrupted run resumes.
    """
    slices = Slices.load(workspace)
    train, tune = (Split.of(workspace, slices, split) for split in ("train", "tune"))
    plan = Plan(slices.names, train, tune, config, slices.digest)
    checkpoint = workspace.checkpoints / "experts.safetensors"
    return train_library(workspace.experts, plan, checkpoint, progress, base, title="train experts")


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
    base = base or load_base(plan.config.base)
    experts = plan.config.experts
    searched = search_rates(base, plan, progress, title) if experts.search_rates else {}
    factor = min(searched, key=lambda f: searched[f]) if searched else 1.0
    trainer = make_trainer(base, plan, factor)
    progress.stage(title, sum(planned_tokens(trainer)))
    with trainer.model:
        saving = Checkpointing(checkpoint, experts.checkpoint_seconds, plan.inputs)
        for name, outcome in trainer.run(saving, progress).items():
            if outcome.failed:
                progress.note(f"expert {name} stopped: {outcome.failed}")
        library = _save_library(path, plan, trainer, searched)
    checkpoint.unlink(missing_ok=True)
    return library


def search_rates(base: Base, plan: Plan, progress: Progress, title: str) -> dict[float, float]:
    """Tune-split perplexity after a short training at each multiple of the configured learning rates.

    The mixture is judged with every record on its own slice's expert. All runs together see at most SEARCH_SHARE of
    the training tokens.
    """
    experts = plan.config.experts
    progress.stage(f"{title}: learning rate", len(RATE_FACTORS))
    examples = encode(plan.tune.records, base, plan.config.data.template, experts.max_tokens)
    weights = np.eye(len(plan.names), dtype=np.float32)[plan.tune.labels]
    found: dict[float, float] = {}
    for factor in RATE_FACTORS:
        trainer = make_trainer(base, plan, factor, experts.epochs * SEARCH_SHARE / len(RATE_FACTORS))
        with trainer.model as model:
            trainer.run()
            failed = all(trainer.outcomes[name].failed for name in plan.names)
            found[factor] = float("inf") if failed else float(score_examples(model, examples, weights).perplexity)
        progress.advance(1, f"×{factor:g}: {found[factor]:.2f}")
    return found


def lora_settings(config: ExpertsConfig, rank: int) -> LoraSettings:
    """LoRA settings of an adapter of `rank` under this recipe."""
    return LoraSettings(rank, config.alpha, config.rslora)


def make_trainer(base: Base, plan: Plan, rate_factor: float = 1.0, epochs: float | None = None) -> Trainer:
    """A trainer for the plan, its learning rates multiplied by `rate_factor`."""
    config = plan.config.experts
    examples = encode(plan.train.records, base, plan.config.data.template, config.max_tokens)
    jobs = []
    for index, name in enumerate(plan.names):
        own = np.flatnonzero(plan.train.labels == index).tolist()
        jobs.append(
            Job(
                name=name,
                examples=[examples[i] for i in own],
                settings=lora_settings(config, config.rank),
                learning_rate=config.learning_rate * rate_factor,
                rows_per_step=plan.rows_per_step,
                identity=[plan.train.records[i].id for i in own],
            )
        )
    shared = None
    if config.mode == "shared" and config.shared_rank:
        shared = lora_settings(config, config.shared_rank), config.shared_learning_rate * rate_factor
    schedule = Schedule(
        epochs=epochs or config.epochs,
        row_tokens=config.row_tokens,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip=config.clip,
        dropout=config.dropout,
        seed=config.seed,
    )
    return Trainer(base, jobs, schedule, shared)


def planned_tokens(trainer: Trainer) -> list[int]:
    """Tokens that each job of a trainer will pass through."""
    return [sum(len(job.examples[i].tokens) for row in trainer.plans[job.name] for i in row) for job in trainer.jobs]


def _save_library(path: Path, plan: Plan, trainer: Trainer, searched: dict[float, float]) -> Library:
    """Write every expert that trained, then the index; the folders of an earlier library go first."""
    if (path / INDEX).exists():
        earlier = Library.load(path)
        (path / INDEX).unlink()
        for member in earlier.members:
            shutil.rmtree(path / member, ignore_errors=True)
    base, kept = trainer.base, [name for name in trainer.model.layout.slots if not trainer.outcomes[name].failed]
    cards = {name: _save_expert(path / name, name, plan, trainer, searched) for name in kept}
    library = Library(
        path=path,
        names=tuple(name for name in kept if name != SHARED),
        has_shared=SHARED in kept,
        base=plan.config.base,
        base_digest=base.digest,
        template=plan.config.data.template,
        template_digest=template(plan.config.data.template, base.tokenizer).digest,
        max_tokens=plan.config.experts.max_tokens,
        inputs=plan.inputs,
        cards=cards,
    )
    library.save_index()
    return library


def _save_expert(folder: Path, name: str, plan: Plan, trainer: Trainer, searched: dict[float, float]) -> dict[str, object]:
    base, outcome = trainer.base, trainer.outcomes[name]
    job = next((job for job in trainer.jobs if job.name == name), None)
    settings = job.settings if job else lora_settings(plan.config.experts, plan.config.experts.shared_rank)
    factors = {p: (a.to(base.dtype), b.to(base.dtype)) for p, (a, b) in trainer.model.factors(name).items()}
    save_adapter(folder, factors, settings, base.id)
    card = {
        "name": name,
        "base": base.id,
        "base_digest": base.digest,
        "data_digest": plan.data_digest,
        "recipe": dataclasses.asdict(plan.config.experts),
        "rank": settings.rank,
        "parameters": sum(a.numel() + b.numel() for a, b in factors.values()),
        "learning_rate": trainer.rates[name],
        "rate_search": {f"{factor:g}": round(value, 4) for factor, value in searched.items() if value < float("inf")},
        "records": len(job.examples) if job else sum(len(j.examples) for j in trainer.jobs),
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "target_tokens": outcome.target_tokens,
        "losses": [round(loss, 4) for loss in outcome.losses],
        "seed": plan.config.experts.seed,
        "sha256": checksum(folder),
    }
    write_json(folder / CARD, card)
    return card
