"""The stage that trains a workspace's experts and writes the library."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from moe_router.config import Config, ExpertsConfig
from moe_router.data.records import Record, load_records
from moe_router.data.slices import Slices
from moe_router.experts.adapters import SHARED
from moe_router.experts.base import Base, base_digest, load_base
from moe_router.experts.encode import encode
from moe_router.experts.library import CARD, INDEX, Library, checksum
from moe_router.experts.peft_format import LoraSettings, save_adapter
from moe_router.experts.trainer import Checkpointing, Job, Outcome, Schedule, Trainer
from moe_router.progress import Progress, Silent
from moe_router.workspace import Workspace, digest_json, write_json


def schedule_of(config: ExpertsConfig) -> Schedule:
    """The part of the settings that every arm of a report shares."""
    return Schedule(
        epochs=config.epochs,
        row_tokens=config.row_tokens,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip=config.clip,
        dropout=config.dropout,
        seed=config.seed,
    )


@dataclass(frozen=True)
class Split:
    """One split's records with the slice of each."""

    records: list[Record]
    labels: list[int]

    @classmethod
    def of(cls, workspace: Workspace, slices: Slices, split: str) -> Split:
        """Records of a split in the workspace's order."""
        records = load_records(workspace.require(workspace.records, "prepare"))
        pairs = [(r, int(label)) for r, label in zip(records, slices.labels, strict=True) if r.split == split]
        return cls([r for r, _ in pairs], [label for _, label in pairs])


def train_experts(workspace: Workspace, config: Config, progress: Progress | None = None, base: Base | None = None) -> Library:
    """Train one expert per slice, and the shared one, in one pass; write them to `workspace.experts`.

    Does nothing when the library there was made from the same base, data and settings. An interrupted run resumes.
    """
    progress = progress or Silent()
    slices = Slices.load(workspace)
    settings = config.experts
    inputs = digest_json([base_digest(config.base), slices.digest, config.data.template, asdict(settings)])
    if (workspace.experts / INDEX).exists():
        library = Library.load(workspace.experts)
        if library.inputs == inputs:
            return library
    base = base or load_base(config.base)
    split = Split.of(workspace, slices, "train")
    trainer = make_trainer(base, split, slices.names, config)
    progress.stage("train experts", sum(planned_tokens(trainer)))
    checkpoint = Checkpointing(workspace.checkpoints / "experts.safetensors", settings.checkpoint_seconds, inputs)
    try:
        outcomes = trainer.run(checkpoint, progress)
        for name, outcome in outcomes.items():
            if outcome.failed:
                progress.note(f"expert {name} stopped: {outcome.failed}")
        library = save_library(workspace, config, base, trainer, outcomes, slices, inputs)
    finally:
        trainer.model.detach()
    checkpoint.path.unlink(missing_ok=True)
    return library


def lora_settings(config: ExpertsConfig, rank: int) -> LoraSettings:
    """LoRA settings of an adapter of `rank` under this recipe."""
    return LoraSettings(rank, config.alpha, config.rslora)


def make_trainer(base: Base, split: Split, names: Sequence[str], config: Config) -> Trainer:
    """One job per slice, and the shared expert unless the mode is isolated."""
    settings = config.experts
    examples = encode(split.records, base, config.data.template, settings.max_tokens)
    jobs = []
    for index, name in enumerate(names):
        own = [i for i, label in enumerate(split.labels) if label == index]
        jobs.append(
            Job(
                name=name,
                examples=[examples[i] for i in own],
                settings=lora_settings(settings, settings.rank),
                learning_rate=settings.learning_rate,
                identity=[split.records[i].id for i in own],
            )
        )
    shared = None
    if settings.mode == "shared" and settings.shared_rank:
        shared = lora_settings(settings, settings.shared_rank), settings.shared_learning_rate
    return Trainer(base, jobs, schedule_of(settings), shared)


def planned_tokens(trainer: Trainer) -> list[int]:
    """Tokens that each job of a trainer will pass through."""
    return [sum(len(job.examples[i].tokens) for row in trainer.plans[job.name] for i in row) for job in trainer.jobs]


def save_library(
    workspace: Workspace,
    config: Config,
    base: Base,
    trainer: Trainer,
    outcomes: dict[str, Outcome],
    slices: Slices,
    inputs: str,
) -> Library:
    """Write every expert that trained, then the index; folders of an earlier library go."""
    root = workspace.experts
    if (root / INDEX).exists():
        earlier = Library.load(root)
        (root / INDEX).unlink()
        for member in earlier.members:
            shutil.rmtree(root / member, ignore_errors=True)
    kept = [name for name in trainer.model.layout.slots if not outcomes[name].failed]
    cards = {}
    for name in kept:
        job = next((j for j in trainer.jobs if j.name == name), None)
        settings = job.settings if job else lora_settings(config.experts, config.experts.shared_rank)
        factors = {p: (a.to(base.dtype), b.to(base.dtype)) for p, (a, b) in trainer.model.factors(name).items()}
        save_adapter(root / name, factors, settings, config.base.model)
        outcome = outcomes[name]
        cards[name] = {
            "name": name,
            "base": config.base.model,
            "base_digest": base.digest,
            "slice_digest": slices.digest,
            "recipe": asdict(config.experts),
            "rank": settings.rank,
            "parameters": sum(a.numel() + b.numel() for a, b in factors.values()),
            "records": len(job.examples) if job else sum(len(j.examples) for j in trainer.jobs),
            "steps": outcome.steps,
            "tokens": outcome.tokens,
            "target_tokens": outcome.target_tokens,
            "losses": [round(loss, 4) for loss in outcome.losses],
            "seed": config.experts.seed,
            "sha256": checksum(root / name),
        }
        write_json(root / name / CARD, cards[name])
    library = Library(
        path=root,
        names=tuple(name for name in kept if name != SHARED),
        has_shared=SHARED in kept,
        base=config.base,
        base_digest=base.digest,
        template=config.data.template,
        max_tokens=config.experts.max_tokens,
        inputs=inputs,
        cards=cards,
    )
    library.save_index()
    return library
