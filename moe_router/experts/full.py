"""Full fine-tuning of an unquantised base: the baseline that adapters are measured against, not a kind of expert."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from moe_router.errors import BaseModelError
from moe_router.experts.base import Base
from moe_router.experts.encode import IGNORE, collate
from moe_router.experts.nats import token_nats
from moe_router.experts.optim import make_optimiser
from moe_router.experts.recompute import recomputing
from moe_router.experts.schedule import Job, Outcome, Schedule, plan_rows
from moe_router.experts.scoring import target_logits
from moe_router.progress import Progress, Silent


def full_finetune(base: Base, job: Job, schedule: Schedule, folder: Path, progress: Progress | None = None) -> Outcome:
    """Train every weight of `base`, in place, on the job's rows, and save model and tokenizer to `folder`.

    Same rows, loss, clipping, schedules and optimisers as the adapters' trainer, so that the two can be compared at equal
    tokens; `job.settings` is not used. Weights, gradients and moments are in the base's type: take fp32 where memory allows.
    Raises BaseModelError for a quantised base, or one in fp16, whose updates would vanish.
    """
    if any(not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point() for layer in base.linears().values()):
        raise BaseModelError(f"base {base.id!r} is quantised, so its weights cannot be trained: set base.quantization = 'none'")
    if base.resident or base.dtype == torch.float16:
        raise BaseModelError("full fine-tuning needs base.quantization = 'none' and base.dtype = 'float32' or 'bfloat16'")
    progress = progress or Silent()
    rows, outcome = plan_rows(job, schedule), Outcome()
    steps = math.ceil(len(rows) / job.rows_per_step)
    model = base.model.requires_grad_(True)
    parameters = list(model.parameters())  # a head tied to the embeddings comes once
    optimiser = make_optimiser(parameters, schedule)
    try:
        for step in range(steps):
            chosen = rows[step * job.rows_per_step : (step + 1) * job.rows_per_step]
            nats, targets, tokens = _step(base, [[job.examples[i] for i in row] for row in chosen], schedule)
            if not math.isfinite(nats):
                raise BaseModelError(f"full fine-tuning diverged at step {step}: lower the learning rate")
            nn.utils.clip_grad_norm_(parameters, schedule.clip)
            optimiser.param_groups[0]["lr"] = job.learning_rate * schedule.rate(step, steps)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            outcome.steps += 1
            outcome.tokens += tokens
            outcome.target_tokens += targets
            outcome.losses.append(nats / targets)
            progress.advance(tokens, f"step {step + 1}/{steps}, loss {outcome.losses[-1]:.2f}")
    finally:
        model.requires_grad_(False)
    model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return outcome


def _step(base: Base, rows: list, schedule: Schedule) -> tuple[float, int, int]:
    """Gradients of the mean loss over the rows' target tokens; returns summed nats, target tokens and tokens."""
    targets = sum(example.target_tokens for row in rows for example in row)
    tokens = sum(len(example.tokens) for row in rows for example in row)
    size = max(1, schedule.micro_tokens // schedule.row_tokens) if schedule.micro_tokens else len(rows)
    nats = 0.0
    for at in range(0, len(rows), size):
        batch = collate(rows[at : at + size], base.eos, base.device)
        with recomputing(base.model, schedule.recompute):
            total = token_nats(target_logits(base.model, batch), batch.labels[batch.labels != IGNORE]).sum()
            (total / targets).backward()
        nats += total.item()
    return nats, targets, tokens
