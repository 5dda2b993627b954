"""How a pass is going, expert by expert: what people watch while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moe_router.experts.adapters import SHARED
from moe_router.progress import Lane, Pace, Progress

if TYPE_CHECKING:
    from moe_router.experts.trainer import Trainer

RECENT = 10
"""A loss told is the mean of the last so many steps."""


def planned_tokens(trainer: Trainer) -> list[int]:
    """Tokens that each job of a trainer will pass through."""
    return [sum(len(job.examples[i].tokens) for row in trainer.plans[job.name] for i in row) for job in trainer.jobs]


class Watch:
    """Tells a Progress after every step how the pass and each of its experts stand."""

    def __init__(self, trainer: Trainer, progress: Progress) -> None:
        """From where the trainer stands now; a resumed one's earlier tokens count as done, not as fast."""
        self.trainer, self.progress = trainer, progress
        planned = planned_tokens(trainer)
        self.planned = dict(zip((job.name for job in trainer.jobs), planned, strict=True)) | {SHARED: sum(planned)}
        self.paces = {name: Pace(outcome.tokens) for name, outcome in trainer.outcomes.items()}
        self.pace = Pace(self.tokens)
        self._over = {name for name, outcome in trainer.outcomes.items() if outcome.over}
        progress.lanes(self.lanes())
        if self.tokens:
            progress.advance(self.tokens)

    @property
    def tokens(self) -> int:
        """Passed through so far, by all experts."""
        return sum(self.trainer.outcomes[job.name].tokens for job in self.trainer.jobs)

    def step(self, tokens: int) -> None:
        """The trainer has taken a step over so many tokens."""
        self.pace.reach(self.tokens)
        for name, outcome in self.trainer.outcomes.items():
            self.paces[name].reach(outcome.tokens)
            if outcome.over and name not in self._over:
                self._over.add(name)
                self.progress.note(f"expert {name} stopped: {outcome.failed or outcome.stopped}")
        self.progress.lanes(self.lanes())
        self.progress.advance(tokens, self.note())

    def lanes(self) -> list[Lane]:
        """One for each expert, the shared one first, if it learns."""
        return [self._lane(name) for name in sorted(self.trainer.outcomes, key=lambda name: name != SHARED)]

    def note(self) -> str:
        """The pass as a whole, in a few words."""
        losses = [loss for job in self.trainer.jobs if (loss := self._loss(job.name)) is not None]
        parts = [f"step {self.trainer.step:,}/{self.trainer.steps:,}"]
        if losses:
            parts.append(f"loss {sum(losses) / len(losses):.2f}")
        if self.pace.per_second:
            parts.append(f"{self.pace.per_second:,.0f} tokens/s")
        return ", ".join(parts)

    def _lane(self, name: str) -> Lane:
        outcome, planned = self.trainer.outcomes[name], self.planned[name]
        ended = "done" if outcome.steps >= self.trainer.lengths[name] else ""
        state = "failed" if outcome.failed else "stopped" if outcome.stopped else ended
        tune = outcome.evaluations[-1][1] if outcome.evaluations else None
        return Lane(name, outcome.tokens, planned, self._loss(name), tune, self.paces[name].per_second, state)

    def _loss(self, name: str) -> float | None:
        return _mean(self.trainer.outcomes[name].losses[-RECENT:])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
