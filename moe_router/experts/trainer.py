"""Training many adapters in one pass over one resident base.

A step holds rows of several experts, each row routed to its own. Every expert has its own loss (mean over its own
target tokens), optimiser, schedule, clipping and random streams, and takes no step without a row of its own; so
without a shared expert one pass gives the same experts as separate runs. The shared expert, if any, is on in every
row and learns from all of them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from moe_router.errors import LibraryError
from moe_router.experts.adapters import SHARED, Dropout, RankLayout, RoutedModel, SlotRoute
from moe_router.experts.base import Base
from moe_router.experts.encode import IGNORE, Batch, Example, collate, pack, stream
from moe_router.experts.peft_format import LoraSettings
from moe_router.experts.scoring import target_logits
from moe_router.progress import Progress, Silent
from moe_router.workspace import atomic


@dataclass(frozen=True)
class Job:
    """One expert's training: its LoRA settings, its data, its learning rate."""

    name: str
    examples: Sequence[Example]
    settings: LoraSettings
    learning_rate: float
    rows_per_step: int = 1
    identity: Sequence[str] = ()
    """Stable ids of the examples; with fractional epochs they decide which examples the last epoch keeps."""


@dataclass(frozen=True)
class Schedule:
    """What all jobs of a pass share."""

    epochs: float = 3.0
    row_tokens: int = 64
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    dropout: float = 0.0
    seed: int = 0

    def rate(self, step: int, steps: int) -> float:
        """Share of the peak rate at `step`: linear warm-up, then linear decay to a tenth."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return (step + 1) / warm
        return 1.0 - 0.9 * (step - warm) / max(1, steps - warm)


@dataclass
class Outcome:
    """What one expert's training came to."""

    steps: int = 0
    tokens: int = 0
    """Tokens passed through, prompts included."""
    target_tokens: int = 0
    losses: list[float] = field(default_factory=list)
    """Mean nats per target token of each step."""
    failed: str = ""
    """Why training stopped early, if it did."""


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often a pass saves itself, and what it must match to be resumed."""

    path: Path
    seconds: float
    digest: str


def plan_rows(job: Job, schedule: Schedule) -> list[tuple[int, ...]]:
    """All rows of a job, every epoch in an order of its own drawn from seed and name."""
    lengths = [len(e.tokens) for e in job.examples]
    rows: list[tuple[int, ...]] = []
    for epoch in range(math.ceil(schedule.epochs)):
        order = stream(schedule.seed, job.name, "order", epoch).permutation(len(lengths)).tolist()
        part = schedule.epochs - epoch
        if part < 1:
            keys = job.identity or [str(i) for i in range(len(lengths))]
            order = [i for i in order if stream(schedule.seed, "part", keys[i]).random() < part]
        rows += pack(lengths, order, schedule.row_tokens)
    return rows


class Trainer:
    """One pass over all jobs. The model's adapters hold the result, in fp32."""

    def __init__(
        self, base: Base, jobs: Sequence[Job], schedule: Schedule, shared: tuple[LoraSettings, float] | None = None
    ) -> None:
        """`shared` is the shared expert's settings and learning rate."""
        self.base, self.jobs, self.schedule = base, jobs, schedule
        layout = RankLayout(tuple(j.name for j in jobs), tuple(j.settings.rank for j in jobs), shared[0].rank if shared else 0)
        scales = {j.name: j.settings.scale for j in jobs} | ({SHARED: shared[0].scale} if shared else {})
        self.model = RoutedModel(base, layout, scales, dtype=torch.float32)
        self.rates = {j.name: j.learning_rate for j in jobs} | ({SHARED: shared[1]} if shared else {})
        self.plans = {j.name: plan_rows(j, schedule) for j in jobs}
        self.lengths = {j.name: math.ceil(len(self.plans[j.name]) / j.rows_per_step) for j in jobs}
        self.steps = max(self.lengths.values())
        if shared:
            self.lengths[SHARED] = self.steps
        self.outcomes = {name: Outcome() for name in layout.slots}
        self.step = 0
        self.parameters = {name: self._initialise(name) for name in layout.slots}
        self.optimisers = {
            name: torch.optim.AdamW(parameters, lr=0.0, weight_decay=schedule.weight_decay, betas=(0.9, 0.99), fused=True)
            for name, parameters in self.parameters.items()
        }

    def _initialise(self, name: str) -> list[nn.Parameter]:
        """Kaiming-uniform A and zero B, as PEFT starts; parameters that share memory with the expert's slots."""
        parameters = []
        for path, (a, b) in self.model.factors(name).items():
            bound = 1 / math.sqrt(a.shape[1])
            draw = stream(self.schedule.seed, name, "init", path).uniform(-bound, bound, a.shape)
            a.copy_(torch.from_numpy(draw))
            parameters += [nn.Parameter(a), nn.Parameter(b)]
        return parameters

    def run(self, checkpointing: Checkpointing | None = None, progress: Progress | None = None) -> dict[str, Outcome]:
        """Train to the end, from the checkpoint if a matching one is there. Raises LibraryError if no expert is left."""
        progress = progress or Silent()
        if checkpointing and self._resume(checkpointing):
            progress.note(f"resumed at step {self.step} of {self.steps}")
            progress.advance(sum(o.tokens for n, o in self.outcomes.items() if n != SHARED))
        saved = time.monotonic()
        try:
            while self.step < self.steps:
                done = self.train_step()
                progress.advance(done, self._note())
                if checkpointing and time.monotonic() - saved > checkpointing.seconds:
                    self._save(checkpointing)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if checkpointing:
                self._save(checkpointing)
            raise
        if all(self.outcomes[j.name].failed for j in self.jobs):
            raise LibraryError("training diverged for every expert: lower experts.learning_rate")
        return self.outcomes

    def train_step(self) -> int:
        """One step over a row (or `rows_per_step`) of every expert whose turn it is; returns the tokens passed through."""
        rows, owners = [], []
        for index, job in enumerate(self.jobs):
            if self.outcomes[job.name].failed:
                continue
            turn = self._turn(job.name)
            if turn is None:
                continue
            at = turn * job.rows_per_step
            for row in self.plans[job.name][at : at + job.rows_per_step]:
                rows.append([job.examples[i] for i in row])
                owners.append(index)
        tokens = sum(len(e.tokens) for row in rows for e in row)
        while rows and (broken := self._step_rows(rows, np.array(owners))):
            kept = [i for i, owner in enumerate(owners) if owner not in broken]
            rows, owners = [rows[i] for i in kept], [owners[i] for i in kept]
        self.step += 1
        return tokens

    def _turn(self, name: str) -> int | None:
        """Which of its own steps the expert takes now, or None if it waits.

        A small slice's steps are spread over the whole pass: were they to come first, the shared expert would end on the
        large slices alone and forget the small ones.
        """
        turn = self.step * self.lengths[name] // self.steps
        return turn if (self.step + 1) * self.lengths[name] // self.steps > turn else None

    def _step_rows(self, rows: list[list[Example]], owners: np.ndarray) -> set[int]:
        """Forward, backward, update; returns the experts that broke down, in which case nothing was updated."""
        batch = collate(rows, self.base.eos, self.base.device)
        with self.model.routed(self._route(owners)):
            logits = target_logits(self.base.model, batch)
            losses, counts, sums = self._losses(logits, batch, owners)
            broken = {i for i, loss in losses.items() if not torch.isfinite(loss)}
            if not broken:
                torch.stack(list(losses.values())).sum().backward()
        active = [*([SHARED] if SHARED in self.parameters else []), *(self.jobs[i].name for i in losses)]
        if not broken:
            norms = {name: self._take_gradients(name) for name in active}
            broken = {i for i in losses if not math.isfinite(norms[self.jobs[i].name])}
            if not broken and SHARED in norms and not math.isfinite(norms[SHARED]):
                broken = set(losses)
        if broken:
            for index in broken:
                self.outcomes[self.jobs[index].name].failed = f"loss or gradient not finite at step {self.step}"
            self._drop_gradients()
            return broken
        for name in active:
            self._update(name)
        self._record(rows, owners, losses, counts, sums)
        return set()

    def _route(self, owners: np.ndarray) -> SlotRoute | None:
        weights = np.eye(len(self.jobs), dtype=np.float32)[owners]
        route = self.model.route(weights)
        if not self.schedule.dropout or route is None:
            return route
        seen: dict[int, int] = {}
        seeds = []
        for owner in owners.tolist():
            seen[owner] = seen.get(owner, -1) + 1
            name = self.jobs[owner].name
            draw = stream(self.schedule.seed, name, "dropout", self.outcomes[name].steps, seen[owner])
            seeds.append(int(draw.integers(1 << 40)))
        return SlotRoute(route.slots, route.gates, route.every, Dropout(self.schedule.dropout, tuple(seeds)))

    def _losses(
        self, logits: torch.Tensor, batch: Batch, owners: np.ndarray
    ) -> tuple[dict[int, torch.Tensor], dict[int, int], dict[int, float]]:
        """Mean loss over its own target tokens, for each expert with rows in the batch."""
        mask = batch.labels != IGNORE
        each = F.cross_entropy(logits, batch.labels[mask], reduction="none")  # (targets,)
        owner = torch.as_tensor(owners, device=each.device)[:, None].expand(-1, mask.shape[1])[mask]
        losses, counts, sums = {}, {}, {}
        for index in sorted(set(owners.tolist())):
            own = each[owner == index]
            losses[index], counts[index], sums[index] = own.mean(), len(own), own.detach().sum().item()
        return losses, counts, sums

    def _take_gradients(self, name: str) -> float:
        """Hand the expert's part of the gradient to its parameters and clip it; returns the norm before."""
        slots = self.model.layout.slots[name]
        parameters = self.parameters[name]
        for layer, a, b in zip(self.model.layers.values(), parameters[::2], parameters[1::2], strict=True):
            a.grad, b.grad = layer.A.grad[slots], layer.B.grad[slots]
        return float(nn.utils.clip_grad_norm_(parameters, self.schedule.clip))

    def _update(self, name: str) -> None:
        optimiser, outcome = self.optimisers[name], self.outcomes[name]
        optimiser.param_groups[0]["lr"] = self.rates[name] * self.schedule.rate(outcome.steps, self.lengths[name])
        optimiser.step()
        outcome.steps += 1

    def _drop_gradients(self) -> None:
        for layer in self.model.layers.values():
            layer.A.grad = layer.B.grad = None

    def _record(
        self,
        rows: list[list[Example]],
        owners: np.ndarray,
        losses: Mapping[int, torch.Tensor],
        counts: Mapping[int, int],
        sums: Mapping[int, float],
    ) -> None:
        self._drop_gradients()
        for row, owner in zip(rows, owners.tolist(), strict=True):
            self.outcomes[self.jobs[owner].name].tokens += sum(len(e.tokens) for e in row)
        for index, loss in losses.items():
            outcome = self.outcomes[self.jobs[index].name]
            outcome.target_tokens += counts[index]
            outcome.losses.append(loss.item())
        if SHARED in self.outcomes:
            shared = self.outcomes[SHARED]
            shared.tokens = sum(self.outcomes[j.name].tokens for j in self.jobs)
            shared.target_tokens += sum(counts.values())
            shared.losses.append(sum(sums.values()) / sum(counts.values()))

    def _note(self) -> str:
        recent = [np.mean(self.outcomes[j.name].losses[-10:]) for j in self.jobs if self.outcomes[j.name].losses]
        return f"step {self.step}/{self.steps}, loss {np.mean(recent):.2f}" if recent else ""

    def _save(self, checkpointing: Checkpointing) -> None:
        from safetensors.torch import save_file

        tensors = {}
        for name, optimiser in self.optimisers.items():
            for i, parameter in enumerate(self.parameters[name]):
                tensors[f"{name}.{i}.weight"] = parameter.data.contiguous()
                for key, value in optimiser.state.get(parameter, {}).items():
                    tensors[f"{name}.{i}.{key}"] = value
        outcomes = {name: vars(outcome) for name, outcome in self.outcomes.items()}
        note = {"digest": checkpointing.digest, "step": str(self.step), "outcomes": json.dumps(outcomes)}
        with atomic(checkpointing.path) as temporary:
            save_file(tensors, temporary, metadata=note)

    def _resume(self, checkpointing: Checkpointing) -> bool:
        from safetensors import SafetensorError, safe_open

        if not checkpointing.path.exists():
            return False
        try:
            with safe_open(checkpointing.path, "pt") as file:
                note = file.metadata() or {}
                if note.get("digest") != checkpointing.digest:
                    return False
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except SafetensorError:
            return False
        for name, optimiser in self.optimisers.items():
            for i, parameter in enumerate(self.parameters[name]):
                parameter.data.copy_(tensors[f"{name}.{i}.weight"])
                state = {key: tensors.get(f"{name}.{i}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
                if state["step"] is not None:
                    optimiser.state[parameter] = {k: v.to(parameter.device) if k != "step" else v for k, v in state.items()}
        self.step = int(note["step"])
        self.outcomes = {name: Outcome(**values) for name, values in json.loads(note["outcomes"]).items()}
        return True
