"""What a finished training writes: the experts' folders, their cards, and last the index."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moe_router.data.templates import template
from moe_router.experts.adapters import SHARED
from moe_router.experts.library import CARD, INDEX, Library, checksum
from moe_router.experts.peft_format import Adapter, save_adapter
from moe_router.experts.trainer import Trainer
from moe_router.workspace import write_json

if TYPE_CHECKING:
    from moe_router.experts.base import Base
    from moe_router.experts.train import Plan


def clear(path: Path) -> None:
    """Remove an earlier library: its index first, so that no half of it can be taken for a whole one."""
    if (path / INDEX).exists():
        earlier = Library.load(path)
        (path / INDEX).unlink()
        for member in earlier.members:
            shutil.rmtree(path / member, ignore_errors=True)


def write_index(path: Path, plan: Plan, base: Base, cards: Mapping[str, dict[str, object]]) -> Library:
    """Write the index of experts whose folders are there; done last."""
    library = Library(
        path=path,
        names=tuple(name for name in plan.names if name in cards),
        has_shared=SHARED in cards,
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


def kept(trainer: Trainer) -> list[str]:
    """What trained, the shared expert first: the others say in their cards beside which one they trained."""
    return [name for name in trainer.trained if not trainer.outcomes[name].failed]


def trained_adapter(trainer: Trainer, name: str) -> Adapter:
    """An expert as it is stored, in the base's compute type."""
    return Adapter(trainer.settings[name], trainer.model.factors(name)).to(trainer.base.dtype)


def write_expert(folder: Path, name: str, plan: Plan, trainer: Trainer, searched: dict[float, float]) -> dict[str, object]:
    """Write one expert's folder beside the shared one's; returns its card."""
    adapter = trained_adapter(trainer, name)
    save_adapter(folder, adapter.factors, adapter.settings, trainer.base.id)
    beside = checksum(folder.parent / SHARED) if trainer.model.shared_rank and name != SHARED else ""
    card = {**card_of(name, plan, trainer, searched, beside), "sha256": checksum(folder)}
    write_json(folder / CARD, card)
    return card


def card_of(name: str, plan: Plan, trainer: Trainer, searched: dict[float, float], beside: str) -> dict[str, object]:
    """What an expert was trained on, and how it went; `beside` is the checksum of the shared expert it was trained with."""
    outcome = trainer.outcomes[name]
    job = next((job for job in trainer.jobs if job.name == name), None)
    layers = trainer.model.layers.values()
    rank = trainer.settings[name].rank
    return {
        "name": name,
        "base": trainer.base.id,
        "base_digest": trainer.base.digest,
        "beside": beside,
        "data_digest": plan.data_digest,
        "recipe": asdict(plan.config.experts),
        "rank": rank,
        "parameters": rank * sum(layer.A.shape[1] + layer.B.shape[1] for layer in layers),
        "learning_rate": trainer.rates[name],
        "rate_search": {f"{factor:g}": round(value, 4) for factor, value in searched.items() if value < float("inf")},
        "records": len(job.examples) if job else sum(len(j.examples) for j in trainer.jobs),
        "steps": outcome.steps,
        "stopped": outcome.stopped,
        "best_step": outcome.best_step or outcome.steps,
        "evaluations": [[step, round(nats, 5)] for step, nats in outcome.evaluations],
        "tokens": outcome.tokens,
        "target_tokens": outcome.target_tokens,
        "losses": [round(loss, 4) for loss in outcome.losses],
        "seed": plan.config.experts.seed,
    }
