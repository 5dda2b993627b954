"""What long work says while it runs: one Protocol that the command line fills and everything else may leave silent."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType

WINDOW = 60.0
"""A pace is that of the last so many seconds."""


@dataclass(frozen=True)
class Lane:
    """One of several things that move forward together: an expert of a training pass."""

    name: str
    done: float
    """Tokens."""
    total: float
    """Tokens it will have seen at its end."""
    loss: float | None = None
    """Nats per response token, of the last steps."""
    tune: float | None = None
    """The same on the tune records, at the last evaluation."""
    tokens_per_second: float | None = None
    state: str = ""
    """Why it no longer moves: done, stopped, failed."""

    @property
    def seconds_left(self) -> float | None:
        """At its present pace; None where that is not known, or it no longer moves."""
        if self.state or not self.tokens_per_second:
            return None
        return max(0.0, self.total - self.done) / self.tokens_per_second


class Progress(Protocol):
    """Receives a stage's progress; all of it goes to stderr or nowhere."""

    def stage(self, title: str, total: float | None = None) -> None:
        """A new stage begins; `total` is its size in any unit."""

    def advance(self, amount: float, note: str = "") -> None:
        """`amount` more of the stage is done."""

    def lanes(self, lanes: Sequence[Lane]) -> None:
        """Where each part of the stage stands now."""

    def note(self, text: str) -> None:
        """One line worth reading."""


class Silent:
    """Says nothing; the default for library use."""

    def stage(self, title: str, total: float | None = None) -> None: ...

    def advance(self, amount: float, note: str = "") -> None: ...

    def lanes(self, lanes: Sequence[Lane]) -> None: ...

    def note(self, text: str) -> None: ...


class Pace:
    """How fast something grows: over the last minute, so that a pause or a resumed run does not distort it for long."""

    def __init__(self, amount: float = 0.0, window: float = WINDOW) -> None:
        self.window = window
        self._seen = deque([(time.monotonic(), amount)])

    def reach(self, amount: float) -> None:
        """It has grown to `amount` by now."""
        now = time.monotonic()
        self._seen.append((now, amount))
        while len(self._seen) > 2 and self._seen[1][0] < now - self.window:
            self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        """None before anything has happened."""
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began) if ended > began and last > first else None


class Stage:
    """What a reporter knows of the stage that runs now."""

    def __init__(self, title: str, total: float | None) -> None:
        self.title, self.total, self.done, self.note = title, total, 0.0, ""
        self.lanes: Sequence[Lane] = ()
        self.began = time.monotonic()
        self._pace = Pace()

    def advance(self, amount: float, note: str) -> None:
        """As Progress says; a note stays until the next."""
        self.done += amount
        self.note = note or self.note
        self._pace.reach(self.done)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def share(self) -> float | None:
        """Of the whole, None where its size is not known."""
        return min(self.done / self.total, 1.0) if self.total else None

    @property
    def seconds_left(self) -> float | None:
        """Until the last lane is there, or the stage as a whole at its present pace."""
        left = [lane.seconds_left for lane in self.lanes if lane.seconds_left is not None]
        if left:
            return max(left)
        pace = self._pace.per_second
        return max(0.0, self.total - self.done) / pace if self.total and pace else None

    def finished(self) -> str:
        """The line that stays."""
        return f"{self.title}: done in {self.seconds:.1f} s"


class Reporter(Progress):
    """A Progress that lives for one `with` block; leaving it closes the open stage."""

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def clock(seconds: float) -> str:
    """0:07, 12:03, 3:04:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
