"""Training many adapters in one pass over one resident base.

A step holds rows of several experts, each row routed to its own. Every expert has its own loss (mean over its own
target tokens), optimiser, schedule, clipping and random streams, and takes no step without a row of its own; so
without a shared expert one pass gives the same experts as separate runs. The shared expert, if any, is on in every
row and learns from all of them.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from moe_router import kernels
from moe_router.errors import LibraryError
from moe_router.experts.adapters import SHARED, Dropout, Mixing, RankLayout, RoutedModel, SlotRoute
from moe_router.experts.base import Base
from moe_router.experts.checkpoint import Checkpointing
from moe_router.experts.cpu_attention import attention_for
from moe_router.experts.curves import Log
from moe_router.experts.encode import IGNORE, Example, collate, stream
from moe_router.experts.fused_layers import fusing
from moe_router.experts.nats import token_nats
from moe_router.experts.optim import LossScale, make_optimiser, step_unless
from moe_router.experts.peft_format import Adapter, LoraSettings, eva_directions, fill
from moe_router.experts.recompute import recomputing
from moe_router.experts.schedule import Job, Outcome, Schedule, plan_rows
from moe_router.experts.scoring import score_examples, target_logits
from moe_router.experts.together import Together, fits
from moe_router.experts.watch import Watch
from moe_router.progress import Progress, Silent

__all__ = ["Checkpointing", "Job", "Outcome", "Schedule", "Trainer", "plan_rows"]

TOGETHER = ("cuda",)
"""Types of devices on which the form `together` is faster than `gathered`, and fused layers than stock ones
(docs/performance.md)."""
EVA_ROWS = 256
"""Rows of an expert that EVA looks at."""
EVA_TARGETS = 4
"""Response tokens in each of EVA's batches, for every direction that is wanted."""


class Trainer:
    """One pass over all jobs. The model's adapters hold the result, in fp32."""

    def __init__(
        self,
        base: Base,
        jobs: Sequence[Job],
        schedule: Schedule,
        shared: tuple[LoraSettings, float] | None = None,
        frozen: Adapter | None = None,
    ) -> None:
        """`shared` is the shared expert's settings and learning rate; `frozen` one that is trained already, and stays."""
        self.base, self.jobs, self.schedule = base, jobs, schedule
        always = shared[0] if shared else frozen.settings if frozen else None
        layout = RankLayout(tuple(j.name for j in jobs), tuple(j.settings.rank for j in jobs), always.rank if always else 0)
        self.settings = {j.name: j.settings for j in jobs} | ({SHARED: always} if always else {})
        scales = {name: settings.scale for name, settings in self.settings.items()}
        self.model = RoutedModel(base, layout, scales, dtype=torch.float32)
        if frozen:
            fill(self.model, SHARED, frozen.factors, "the shared expert")
        self.rates = {j.name: j.learning_rate for j in jobs} | ({SHARED: shared[1]} if shared else {})
        self.plans = {j.name: plan_rows(j, schedule) for j in jobs}
        self.lengths = {j.name: math.ceil(len(self.plans[j.name]) / j.rows_per_step) for j in jobs}
        self.steps = max(self.lengths.values())
        if shared:
            self.lengths[SHARED] = self.steps
        self.joint = shared is not None
        """Whether a shared expert learns from every row."""
        self.trained = tuple(name for name in layout.slots if not (frozen and name == SHARED))
        self.outcomes = {name: Outcome() for name in self.trained}
        fast = base.device.type in TOGETHER
        self.form = "together" if fast and fits(self.model) else "gathered"
        self.ops = kernels.for_training(base.device) if fast else None
        self.step = 0
        self.scale = LossScale.of(base.dtype)
        self.norms: dict[str, float] = {}
        """Gradient norms of the last step, before clipping."""
        self.best: dict[str, list[torch.Tensor]] = {}
        """Copies of the parameters of experts whose best evaluation lies behind them."""
        try:
            self.parameters = {name: self._initialise(name) for name in self.trained}
        except LibraryError:
            self.model.detach()
            raise
        self.optimisers = {name: make_optimiser(parameters, schedule) for name, parameters in self.parameters.items()}

    def _initialise(self, name: str) -> list[nn.Parameter]:
        """A by `start` and zero B, as PEFT begins; parameters that share memory with the expert's slots."""
        directions = self._directions(name) if self.schedule.start == "eva" else {}
        parameters = []
        for path, (a, b) in self.model.factors(name).items():
            if path in directions:
                a.copy_(directions[path])
            else:
                bound = 1 / math.sqrt(a.shape[1])
                draw = stream(self.schedule.seed, name, "init", path).uniform(-bound, bound, a.shape)
                a.copy_(torch.from_numpy(draw))
            parameters += [nn.Parameter(a), nn.Parameter(b)]
        return parameters

    def _directions(self, name: str) -> dict[str, torch.Tensor]:
        """EVA on the first rows of the expert's own plan, of every job's for the shared expert, through the bare base."""
        jobs = self.jobs if self.joint and name == SHARED else [job for job in self.jobs if job.name == name]
        rank = self.settings[name].rank
        rows = [[job.examples[i] for i in row] for job in jobs for row in self.plans[job.name][: EVA_ROWS // len(jobs) + 1]]
        batches, part = [], []
        for row in rows:
            part.append(row)
            if sum(e.target_tokens for chosen in part for e in chosen) >= EVA_TARGETS * rank:
                batches.append(part)
                part = []
        if not batches:
            raise LibraryError(
                f"expert {name!r} has too few response tokens for EVA at rank {rank}: set experts.start = 'kaiming' or lower it"
            )
        made = [collate(part, self.base.eos, self.base.device) for part in batches]
        inputs = [{"input_ids": batch.tokens, "position_ids": batch.positions, "labels": batch.labels} for batch in made]
        layers = {path: f"{path}.base" for path in self.model.layers}
        return eva_directions(self.base.model, layers, inputs, rank)

    def run(
        self, checkpointing: Checkpointing | None = None, progress: Progress | None = None, log: Log | None = None
    ) -> dict[str, Outcome]:
        """Train to the end, from the checkpoint if a matching one is there. Raises LibraryError if no expert is left."""
        progress = progress or Silent()
        if checkpointing and checkpointing.resume(self):
            progress.note(f"resumed at step {self.step} of {self.steps}")
        saved = time.monotonic()
        watch = Watch(self, progress)
        try:
            while self.step < self.steps and not all(self.outcomes[j.name].over for j in self.jobs):
                watch.step(self.train_step())
                if log:
                    log.write(self)
                if checkpointing and time.monotonic() - saved > checkpointing.seconds:
                    checkpointing.save(self)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if checkpointing:
                checkpointing.save(self)
            raise
        if all(self.outcomes[j.name].failed for j in self.jobs):
            raise LibraryError("training diverged for every expert: lower experts.learning_rate")
        self._take_best()
        return self.outcomes

    def train_step(self) -> int:
        """One step over the next rows of every expert whose turn it is; returns the tokens passed through."""
        rows, owners = [], []
        for index, job in enumerate(self.jobs):
            turn = None if self.outcomes[job.name].over else self._turn(job.name)
            if turn is None:
                continue
            at = turn * job.rows_per_step
            for row in self.plans[job.name][at : at + job.rows_per_step]:
                rows.append([job.examples[i] for i in row])
                owners.append(index)
        tokens = sum(len(e.tokens) for row in rows for e in row)
        while rows and (broken := self._step_rows(rows, np.array(owners), self.form)) is not None:
            kept = [i for i, owner in enumerate(owners) if owner not in broken]
            rows, owners = [rows[i] for i in kept], [owners[i] for i in kept]
        self.step += 1
        self._judge(sorted(set(owners)))
        return tokens

    def _turn(self, name: str) -> int | None:
        """Which of its own steps the expert takes now, or None if it waits.

        A small slice's steps are spread over the whole pass: were they to come first, the shared expert would end on the
        large slices alone and forget the small ones.
        """
        turn = self.step * self.lengths[name] // self.steps
        return turn if (self.step + 1) * self.lengths[name] // self.steps > turn else None

    def _step_rows(self, rows: list[list[Example]], owners: np.ndarray, form: str) -> set[int] | None:
        """Forward, backward, update. Where that fails nothing is updated, and the experts that broke down are returned:
        none of them when only the loss scale was too large, and the same rows can be tried again."""
        targets = {i: sum(e.target_tokens for r, o in zip(rows, owners, strict=True) if o == i for e in r) for i in set(owners)}
        sums = dict.fromkeys(targets, 0.0)
        seeds = self._dropout_seeds(owners)
        for part in self._micro_batches(rows):
            route = self._route(owners[part], [seeds[i] for i in part], form)
            for index, nats in self._pass_rows([rows[i] for i in part], owners[part], route, targets).items():
                sums[index] += nats
            broken = {index for index, nats in sums.items() if not math.isfinite(nats)}
            if broken:
                return self._give_up(broken, "loss") if form == "gathered" else self._step_apart(rows, owners)
        active = [*([SHARED] if self.joint else []), *(self.jobs[i].name for i in targets)]
        norms = self.norms = self._update(active)
        if not all(map(math.isfinite, norms.values())):
            if self.scale.lower():
                self._drop_gradients()
                return set()
            if form != "gathered":
                return self._step_apart(rows, owners)
            broken = {i for i in targets if not math.isfinite(norms[self.jobs[i].name])}
            return self._give_up(broken or set(targets), "gradient")
        self._drop_gradients()
        self.scale.passed()
        self._record(rows, owners, targets, sums)
        return None

    def _step_apart(self, rows: list[list[Example]], owners: np.ndarray) -> set[int] | None:
        """Once more in the form that keeps a row that breaks down from the others, to see which expert's it is."""
        self._drop_gradients()
        return self._step_rows(rows, owners, "gathered")

    def _micro_batches(self, rows: Sequence[Sequence[Example]]) -> Iterator[list[int]]:
        """Indices of rows that pass together: at most `micro_tokens` of them, padding included, and at least one row."""
        lengths = [sum(len(e.tokens) for e in row) for row in rows]
        limit = self.schedule.micro_tokens or sum(lengths) * len(rows)
        part: list[int] = []
        for index in sorted(range(len(rows)), key=lambda i: lengths[i]) if self.schedule.micro_tokens else range(len(rows)):
            if part and max(lengths[index], *(lengths[i] for i in part)) * (len(part) + 1) > limit:
                yield part
                part = []
            part.append(index)
        yield part

    def _pass_rows(
        self, rows: list[list[Example]], owners: np.ndarray, route: Mixing | None, targets: Mapping[int, int]
    ) -> dict[int, float]:
        """Forward and backward; gradients add up in the layers. Returns the summed nats of each expert in these rows.

        `targets` are the target tokens of the whole step: every expert's loss is its mean over them.
        """
        batch = collate(rows, self.base.eos, self.base.device)
        mask = batch.labels != IGNORE
        owner = torch.as_tensor(owners, device=mask.device)[:, None].expand(-1, mask.shape[1])[mask]  # (targets,)
        present = sorted(set(owners.tolist()))
        model = self.base.model
        attending = functools.partial(attention_for, self.base.device, self.base.dtype)
        again = recomputing(model, self.schedule.recompute, attending)
        with self.model.routed(route), fusing(model, self.ops), again, attending():
            each = token_nats(target_logits(model, batch), batch.labels[mask])  # (targets,)
            sums = torch.stack([torch.where(owner == index, each, 0).sum() for index in present])
            nats = sums.tolist()
            if all(map(math.isfinite, nats)):
                weights = torch.tensor([self.scale.value / targets[index] for index in present], device=sums.device)
                (sums * weights).sum().backward()
        return dict(zip(present, nats, strict=True))

    def _route(self, owners: np.ndarray, seeds: Sequence[int], form: str) -> Mixing | None:
        weights = np.eye(len(self.jobs), dtype=np.float32)[owners]
        if form == "together" and not self.schedule.dropout:
            return Together(self.model, self.model.gates(weights), keep=self.schedule.recompute)
        route = self.model.route(weights, form="gathered")
        if not self.schedule.dropout or route is None:
            return route
        return SlotRoute(route.slots, route.gates, route.every, Dropout(self.schedule.dropout, tuple(seeds)))

    def _dropout_seeds(self, owners: np.ndarray) -> list[int]:
        """One per row, from its expert's name and step and its place among the expert's rows."""
        seen: dict[int, int] = {}
        seeds = []
        for owner in owners.tolist():
            seen[owner] = seen.get(owner, -1) + 1
            name = self.jobs[owner].name
            draw = stream(self.schedule.seed, name, "dropout", self.outcomes[name].steps, seen[owner])
            seeds.append(int(draw.integers(1 << 40)))
        return seeds

    def _update(self, names: Sequence[str]) -> dict[str, float]:
        """A step of every named expert, unless one of their gradients is not finite; the gradients' norms before clipping."""
        found = torch.stack([self._take_gradients(name) for name in names])  # (names,)
        broken = (~found.isfinite().all()).float()
        for name in names:
            optimiser = self.optimisers[name]
            rate = self.schedule.rate(self.outcomes[name].steps, self.lengths[name])
            optimiser.param_groups[0]["lr"] = self.rates[name] * rate
            step_unless(broken, optimiser)
        norms = found.tolist()  # the host waits for the device only here
        if all(map(math.isfinite, norms)):
            for name in names:
                self.outcomes[name].steps += 1
        return dict(zip(names, norms, strict=True))

    def _take_gradients(self, name: str) -> torch.Tensor:
        """Hand the expert's part of the gradient to its parameters and clip it; its norm before."""
        slots = self.model.layout.slots[name]
        parameters = self.parameters[name]
        for layer, a, b in zip(self.model.layers.values(), parameters[::2], parameters[1::2], strict=True):
            a.grad, b.grad = layer.A.grad[slots], layer.B.grad[slots]
        if self.scale.value != 1:
            torch._foreach_mul_([parameter.grad for parameter in parameters], 1 / self.scale.value)
        return nn.utils.clip_grad_norm_(parameters, self.schedule.clip)

    def _give_up(self, broken: set[int], what: str) -> set[int]:
        for index in broken:
            name = self.jobs[index].name
            self.outcomes[name].failed = f"{what} not finite at step {self.step}"
            for parameter in self.parameters[name]:
                parameter.data.zero_()  # or it would break every later step where all slots are multiplied
        self._drop_gradients()
        return broken

    def _drop_gradients(self) -> None:
        for layer in self.model.layers.values():
            layer.A.grad = layer.B.grad = None
        for parameters in self.parameters.values():
            for parameter in parameters:
                parameter.grad = None

    def _record(
        self, rows: list[list[Example]], owners: np.ndarray, targets: Mapping[int, int], sums: Mapping[int, float]
    ) -> None:
        for row, owner in zip(rows, owners.tolist(), strict=True):
            self.outcomes[self.jobs[owner].name].tokens += sum(len(e.tokens) for e in row)
        for index, nats in sums.items():
            outcome = self.outcomes[self.jobs[index].name]
            outcome.target_tokens += targets[index]
            outcome.losses.append(nats / targets[index])
        if self.joint:
            shared = self.outcomes[SHARED]
            shared.tokens = sum(self.outcomes[j.name].tokens for j in self.jobs)
            shared.target_tokens += sum(targets.values())
            shared.losses.append(sum(sums.values()) / sum(targets.values()))

    def _judge(self, stepped: Sequence[int]) -> None:
        """Stop experts that diverge; evaluate those whose turn it is, keep their best states, stop those that only worsen.

        With a shared expert all are judged together, since the best state of one is only its best beside that of the others.
        """
        for index in stepped:
            outcome = self.outcomes[self.jobs[index].name]
            if outcome.diverged:
                outcome.failed = f"diverged: losses rose by more than a nat over {outcome.steps} steps"
        every = self.schedule.evaluate_every
        if not every or not stepped:
            return
        units = {SHARED: self.jobs} if self.joint else {self.jobs[i].name: [self.jobs[i]] for i in stepped}
        for key, jobs in units.items():
            steps, jobs = self.outcomes[key].steps, [job for job in jobs if not self.outcomes[job.name].failed]
            if jobs and (steps % every == 0 or steps == self.lengths[key]):
                self._evaluate(key, jobs, [key, *(job.name for job in jobs if job.name != key)])

    def _evaluate(self, key: str, jobs: Sequence[Job], members: Sequence[str]) -> None:
        nats, tokens = 0.0, 0
        for job in jobs:
            if job.tune:
                weights = np.eye(len(self.jobs), dtype=np.float32)[[self.jobs.index(job)]]
                found = score_examples(self.model, job.tune, np.tile(weights, (len(job.tune), 1)))
                nats, tokens = nats + float(found.nats.sum()), tokens + int(found.tokens.sum())
                if job.name != key:
                    own = self.outcomes[job.name]
                    own.evaluations.append((own.steps, float(found.nats.sum() / found.tokens.sum())))
        if not tokens:
            return
        outcome = self.outcomes[key]
        outcome.evaluations.append((outcome.steps, nats / tokens))
        best = min(outcome.evaluations, key=lambda evaluation: evaluation[1])[0]
        late = self.schedule.patience and sum(step > best for step, _ in outcome.evaluations) >= self.schedule.patience
        for name in members:
            if best == outcome.steps:
                self.best[name] = [parameter.data.cpu().clone() for parameter in self.parameters[name]]
                self.outcomes[name].best_step = self.outcomes[name].steps
            if late:
                self.outcomes[name].stopped = f"no better on the tune records since its step {best}"

    def _take_best(self) -> None:
        for name, kept in self.best.items():
            for parameter, value in zip(self.parameters[name], kept, strict=True):
                parameter.data.copy_(value)
