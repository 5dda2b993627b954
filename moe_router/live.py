"""The live display of a terminal: the stage that runs, and a table of what moves forward in it.

Finished stages scroll away as plain lines, so the display never outgrows the screen; columns that do not fit are left
out, so that no line ever wraps.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import IO

from rich.console import Console, Group, RenderableType
from rich.live import Live as Display
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from moe_router.progress import Lane, Reporter, Stage, clock

BAR = 24
"""Widest bar, in characters."""
WIDE, MEDIUM, NARROW = 88, 60, 40
"""Below these widths, in characters: no bar for each lane; no time gone, pace or tune loss; no bar at all."""
AROUND = 4
"""Lines of the display that are not lanes, and one free below."""
GAP, INDENT = 2, "  "
"""Between columns, and before a lane's name."""
SHORTEST_NOTE = 12
"""Less room than this is left empty."""


class Live(Reporter):
    """Redraws the running stage; finished stages stay above it with the time they took."""

    def __init__(self, stream: IO[str]) -> None:
        self.console = Console(file=stream)
        self.current: Stage | None = None
        # a library's prints come above the display, on the same stream
        self.display = Display(console=self.console, get_renderable=self._render, refresh_per_second=4, redirect_stdout=True)

    def __enter__(self) -> Live:
        self.display.start()
        return self

    def stage(self, title: str, total: float | None = None) -> None:
        self._finish()
        self.current = Stage(title, total)

    def advance(self, amount: float, note: str = "") -> None:
        if self.current is not None:
            self.current.advance(amount, note)

    def lanes(self, lanes: Sequence[Lane]) -> None:
        if self.current is not None:
            self.current.lanes = lanes

    def note(self, text: str) -> None:
        self.console.print(f"  {text}", markup=False, highlight=False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._finish()
        self.display.stop()

    def _finish(self) -> None:
        stage, self.current = self.current, None
        if stage is None:
            return
        if len(stage.lanes) > 1:
            self.console.print(lanes_table(stage.lanes, self.console.width))
        self.console.print(stage.finished(), markup=False, highlight=False)

    def _render(self) -> RenderableType:
        stage = self.current
        if stage is None:
            return Group()
        width, parts = self.console.width, [stage_line(stage, self.console.width)]
        if len(stage.lanes) > 1:
            room = max(1, self.console.height - AROUND)
            shown = _most_wanted(stage.lanes, room)
            parts.append(lanes_table(shown, width))
            if len(shown) < len(stage.lanes):
                parts.append(Text(f"  … and {len(stage.lanes) - len(shown)} more", style="dim"))
        return Group(*parts)


def stage_line(stage: Stage, width: int) -> RenderableType:
    """Title, bar, share, time gone and left, note: as much of it as fits into one line of `width` characters."""
    cells: list[tuple[RenderableType, int]] = []
    if width >= NARROW:
        bar = min(BAR, width // 4)
        cells.append((ProgressBar(total=stage.total, completed=stage.done, width=bar, pulse=stage.total is None), bar))
    if stage.share is not None:
        cells.append((Text(f"{stage.share:4.0%}"), 4))
    if width >= MEDIUM:
        cells.append(_timed(clock(stage.seconds), "yellow"))
    if stage.seconds_left is not None:
        cells.append(_timed(f"{clock(stage.seconds_left)} left", "cyan"))
    room = width - sum(size + GAP for _, size in cells)  # for title and note
    line = Table.grid(padding=(0, GAP, 0, 0))
    title = min(len(stage.title), max(room, 1))
    cells.insert(0, (Text(stage.title), title))
    if room - title - GAP >= SHORTEST_NOTE:
        cells.append((Text(stage.note, style="dim"), room - title - GAP))
    for _, size in cells:
        line.add_column(no_wrap=True, overflow="ellipsis", width=size)
    line.add_row(*(cell for cell, _ in cells))
    return line


def lanes_table(lanes: Sequence[Lane], width: int) -> Table:
    """Each lane's loss, pace and time left or end, in at most `width` characters."""
    columns = {"loss": (5, lambda lane: _nats(lane.loss))}
    if width >= MEDIUM:
        if any(lane.tune is not None for lane in lanes):
            columns["tune"] = 5, lambda lane: _nats(lane.tune)
        columns["tokens/s"] = 8, _pace
    columns["left"] = 7, _left
    if width >= WIDE:
        columns[""] = BAR, lambda lane: ProgressBar(total=lane.total, completed=lane.done, width=BAR)
        columns[" "] = 4, lambda lane: Text(f"{lane.done / max(1, lane.total):.0%}")
    room = width - sum(size + GAP for size, _ in columns.values())
    longest = len(INDENT) + max(len("expert"), *(len(lane.name) for lane in lanes))
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(f"{INDENT}expert", no_wrap=True, overflow="ellipsis", width=max(1, min(room, longest)))
    for name, (size, _) in columns.items():
        table.add_column(name, no_wrap=True, justify="right", width=size)
    for lane in lanes:
        cells = (cell(lane) for _, cell in columns.values())
        table.add_row(Text(f"{INDENT}{lane.name}"), *cells, style="dim" if lane.state else "")
    return table


def _timed(text: str, style: str) -> tuple[Text, int]:
    return Text(text, style=style), len(text)


def _nats(value: float | None) -> Text:
    return Text("" if value is None else f"{value:.2f}")


def _pace(lane: Lane) -> Text:
    return Text(f"{lane.tokens_per_second:,.0f}" if lane.tokens_per_second and not lane.state else "")


def _left(lane: Lane) -> Text:
    if lane.state:
        return Text(lane.state, style="red" if lane.state == "failed" else "")
    return Text("" if lane.seconds_left is None else clock(lane.seconds_left))


def _most_wanted(lanes: Sequence[Lane], room: int) -> list[Lane]:
    """At most `room` lanes, in their order, those that still move before those that do not."""
    first = sorted(range(len(lanes)), key=lambda i: bool(lanes[i].state))[:room]
    return [lanes[i] for i in sorted(first)]
