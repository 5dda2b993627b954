"""Progress for people: a live display on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

from moe_router.progress import Lane, Reporter, Silent, Stage, clock

if TYPE_CHECKING:
    from types import TracebackType

SPACING = 0.05
"""Plain lines come at least this share of the stage's time apart, so that a night's log stays short."""
LANES_RARER = 4
"""Every lane has a line of its own that many times as rarely."""


class Quiet(Silent, Reporter):
    """`-q`: nothing at all."""


def reporter(quiet: bool = False, stream: IO[str] | None = None) -> Reporter:
    """The reporter that suits `stream` (default: stderr)."""
    stream = stream if stream is not None else sys.stderr
    if quiet:
        return Quiet()
    if not stream.isatty():
        return Lines(stream)
    from moe_router.live import Live

    return Live(stream)


class Lines(Reporter):
    """One line when a stage begins, one every `interval` seconds or longer, one when it is done; lanes come with some."""

    def __init__(self, stream: IO[str], interval: float = 15.0) -> None:
        self.stream, self.interval = stream, interval
        self.current: Stage | None = None

    def stage(self, title: str, total: float | None = None) -> None:
        self._finish()
        self.current, self.told = Stage(title, total), time.monotonic()
        self.told_lanes = self.told
        self._write(title)

    def advance(self, amount: float, note: str = "") -> None:
        if self.current is None:
            return
        self.current.advance(amount, note)
        if self._due(self.told, 1):
            self._tell(self.current)

    def lanes(self, lanes: Sequence[Lane]) -> None:
        if self.current is not None:
            self.current.lanes = lanes

    def note(self, text: str) -> None:
        self._write(f"  {text}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._finish()

    def _due(self, last: float, times: int) -> bool:
        return time.monotonic() - last >= times * max(self.interval, self.current.seconds * SPACING)

    def _tell(self, stage: Stage) -> None:
        self.told = time.monotonic()
        share = f"{stage.share:.0%}" if stage.share is not None else f"{stage.done:,.0f}"
        left = f"{clock(stage.seconds_left)} left" if stage.seconds_left is not None else ""
        self._write("  ".join(part for part in (f"{stage.title}: {share}", clock(stage.seconds), left, stage.note) if part))
        if self._due(self.told_lanes, LANES_RARER):
            self._tell_lanes(stage)

    def _tell_lanes(self, stage: Stage) -> None:
        self.told_lanes = time.monotonic()
        for line in lane_lines(stage.lanes):
            self._write(f"  {line}")

    def _finish(self) -> None:
        if self.current is not None:
            self._tell_lanes(self.current)
            self._write(self.current.finished())
        self.current = None

    def _write(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


def lane_lines(lanes: Sequence[Lane]) -> Iterator[str]:
    """One aligned line for each of several lanes: loss, tokens a second, time left or why it no longer moves."""
    if len(lanes) < 2:
        return
    width = max(len(lane.name) for lane in lanes)
    for lane in lanes:
        parts = [f"{lane.name:<{width}}", f"{lane.done / lane.total:4.0%}" if lane.total else "    "]
        parts.append(f"loss {lane.loss:5.2f}" if lane.loss is not None else " " * 10)
        if lane.tune is not None:
            parts.append(f"tune {lane.tune:5.2f}")
        if lane.state:
            parts.append(lane.state)
        elif lane.seconds_left is not None:
            parts += [f"{lane.tokens_per_second:7,.0f} tokens/s", f"{clock(lane.seconds_left):>7} left"]
        yield "  ".join(parts).rstrip()
