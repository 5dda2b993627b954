"""What a pass trains, in which order, and how fast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from moe_router.experts.encode import Example, pack, stream
from moe_router.experts.peft_format import LoraSettings

FLOOR = 0.1
"""The decaying schedules end at this share of the peak rate."""
DIVERGED_STEPS = 20
DIVERGED_NATS = 1.0
"""An expert has diverged when the mean of its last 20 losses lies 1 nat above that of its first 20."""


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
    tune: Sequence[Example] = ()
    """What the expert is evaluated on while it trains."""


@dataclass(frozen=True)
class Schedule:
    """What all jobs of a pass share."""

    epochs: float = 3.0
    steps: int = 0
    """Steps of every job instead of `epochs`; 0: epochs decide."""
    row_tokens: int = 64
    micro_tokens: int = 0
    """Most tokens that pass at once; 0: a step's rows all together."""
    warmup: float = 0.05
    decay: str = "linear"
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    clip: float = 1.0
    dropout: float = 0.0
    recompute: bool = False
    """Gradient checkpointing."""
    evaluate_every: int = 0
    patience: int = 0
    start: str = "kaiming"
    seed: int = 0

    def rate(self, step: int, steps: int) -> float:
        """Share of the peak rate at `step`: linear warm-up, then linear or cosine decay to a tenth, or none."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        left = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[self.decay]
        return FLOOR + (1 - FLOOR) * left


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
    """Why training stopped early without a result, if it did."""
    stopped: str = ""
    """Why training stopped early with its best state kept, if it did."""
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    """(own steps, nats per response token on the tune records)."""
    best_step: int = 0
    """The step whose state was kept; 0: the last."""

    @property
    def over(self) -> bool:
        """Whether it takes no more steps, however many were planned."""
        return bool(self.failed or self.stopped)

    @property
    def diverged(self) -> bool:
        """Whether the losses are finite but climb."""
        if len(self.losses) < 2 * DIVERGED_STEPS:
            return False
        first, last = self.losses[:DIVERGED_STEPS], self.losses[-DIVERGED_STEPS:]
        return (sum(last) - sum(first)) / DIVERGED_STEPS > DIVERGED_NATS


def plan_rows(job: Job, schedule: Schedule) -> list[tuple[int, ...]]:
    """All rows of a job as indices of its examples, every epoch in an order of its own drawn from seed and name."""
    lengths = [len(e.tokens) for e in job.examples]
    wanted = schedule.steps * job.rows_per_step
    rows: list[tuple[int, ...]] = []
    epoch = 0
    while len(rows) < wanted if wanted else epoch < schedule.epochs:
        order = stream(schedule.seed, job.name, "order", epoch).permutation(len(lengths)).tolist()
        part = schedule.epochs - epoch
        if part < 1 and not wanted:
            keys = job.identity or [str(i) for i in range(len(lengths))]
            order = [i for i in order if stream(schedule.seed, "part", keys[i]).random() < part]
        rows += pack(lengths, order, schedule.row_tokens)
        epoch += 1
    return rows[:wanted] if wanted else rows
