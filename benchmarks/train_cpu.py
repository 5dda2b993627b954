"""Training on a CPU: what the experts' one pass costs beside the plain base's own forward and backward, and PEFT's step.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/train_cpu.py --workspace /tmp/train-cpu [--steps 30]

The demo's mixture on the sample: the embedded base, its NF4 values held in bfloat16, eight experts and a shared one of rank
8, a row of 64 tokens each. Every step's rows go through all cases in turn, timed by the process's own time, so that others on
the machine disturb little. `base` has no adapters: its loss, and gradients down to the embeddings it read.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sample_company import open_sample

from moe_router.experts.base import Base
from moe_router.experts.cpu_attention import attention_for
from moe_router.experts.encode import IGNORE, Batch, Example, collate
from moe_router.experts.nats import token_nats
from moe_router.experts.scoring import target_logits
from moe_router.experts.train import make_trainer
from moe_router.experts.trainer import Trainer

Rows = list[list[Example]]


def base_step(base: Base, batch: Batch) -> None:
    """Forward, loss and backward to what the first layer reads."""
    leaves = []
    handle = base.model.get_input_embeddings().register_forward_hook(
        lambda _, __, y: leaves.append(y.requires_grad_()) or leaves[0]
    )
    try:
        token_nats(target_logits(base.model, batch), batch.labels[batch.labels != IGNORE]).mean().backward()
    finally:
        handle.remove()
    assert leaves[0].grad.isfinite().all()


class Theirs:
    """One PEFT adapter for all rows, as its users make one: fp32 factors, AdamW, clipping."""

    def __init__(self, base: Base, rank: int) -> None:
        from peft import LoraConfig, get_peft_model

        targets = sorted({path.rpartition(".")[2] for path in base.linears()})
        self.model = get_peft_model(base.model, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4)

    def step(self, rows: Rows, base: Base) -> None:
        batch = collate(rows, base.eos, base.device)
        logits = target_logits(self.model.get_base_model(), batch)
        token_nats(logits, batch.labels[batch.labels != IGNORE]).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()


def rows_of(trainer: Trainer, steps: int) -> list[Rows]:
    """The first rows of every expert, step by step."""
    return [[[job.examples[i] for i in trainer.plans[job.name][step]] for job in trainer.jobs] for step in range(steps)]


def ours(trainer: Trainer, rows: Rows, form: str, update: bool) -> None:
    """A step of all experts in one pass, or its forward and backward alone."""
    owners = np.arange(len(rows))
    if update:
        trainer._step_rows(rows, owners, form)
        return
    targets = {i: sum(e.target_tokens for e in row) for i, row in enumerate(rows)}
    trainer._pass_rows(rows, owners, trainer._route(owners, owners.tolist(), form), targets)
    trainer._drop_gradients()


def timed(cases: dict[str, Callable[[Rows], None]], batches: Sequence[Rows]) -> dict[str, list[float]]:
    """Seconds of the process for every case and batch, the cases in turn; once before, since oneDNN compiles for each shape."""
    seconds = {name: [] for name in cases}
    for measured in (False, True):
        for rows in batches:
            for name, run in cases.items():
                began = time.process_time()
                run(rows)
                if measured:
                    seconds[name].append(time.process_time() - began)
    return seconds


def table(seconds: dict[str, list[float]], tokens: int) -> None:
    """Medians and rates, and each rate over the first case's."""
    first = sum(next(iter(seconds.values())))
    for name, found in seconds.items():
        rate = tokens / sum(found)
        print(f"{name:<40} {1e3 * statistics.median(found):7.1f} ms/step {rate:7,.0f} tokens/s {first / sum(found):6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--peft-rank", type=int, default=16, help="rank of PEFT's adapter; 16 is active in our rows")
    given = parser.parse_args()
    _, base, plan = open_sample(given.workspace, given.seed)
    trainer = make_trainer(base, plan)
    batches = rows_of(trainer, given.steps)
    tokens = sum(len(e.tokens) for rows in batches for row in rows for e in row)
    print(
        f"{tokens:,} tokens, {given.steps} steps, {torch.get_num_threads()} thread(s), {base.dtype}, torch {torch.__version__}"
    )

    def plain(rows: Rows) -> None:
        base_step(base, collate(rows, base.eos, base.device))

    def in_fp32(rows: Rows) -> None:
        with attention_for(base.device, base.dtype):
            plain(rows)

    cases = {"base": plain, "base, attention in fp32": in_fp32}
    for form in ("gathered", "together"):
        cases[f"ours, {form}, without update"] = lambda rows, form=form: ours(trainer, rows, form, False)
    cases[f"ours, {trainer.form}"] = lambda rows: ours(trainer, rows, trainer.form, True)
    with trainer.model:
        table(timed(cases, batches), tokens)
    theirs = Theirs(base, given.peft_rank)

    def without(rows: Rows) -> None:
        with theirs.model.disable_adapter():
            plain(rows)

    cases = {"base, in PEFT": without, f"PEFT, one adapter of rank {given.peft_rank}": lambda rows: theirs.step(rows, base)}
    table(timed(cases, batches), tokens)


if __name__ == "__main__":
    main()
