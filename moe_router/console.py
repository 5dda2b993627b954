"""Progress for people: a live bar on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from typing import IO, TYPE_CHECKING, Any

from moe_router.progress import Progress, Silent

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as Bar


class Reporter(Progress):
    """A Progress that lives for one `with` block; leaving it closes the open stage."""

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Quiet(Silent, Reporter):
    """`-q`: nothing at all."""


def reporter(quiet: bool = False, stream: IO[str] | None = None) -> Reporter:
    """The reporter that suits `stream` (default: stderr)."""
    stream = stream if stream is not None else sys.stderr
    if quiet:
        return Quiet()
    return Live(stream) if stream.isatty() else Lines(stream)


class Lines(Reporter):
    """One line when a stage begins, one every `interval` seconds while it runs, one when it is done."""

    def __init__(self, stream: IO[str], interval: float = 15.0) -> None:
        self.stream, self.interval = stream, interval
        self.title = ""

    def stage(self, title: str, total: float | None = None) -> None:
        self._finish()
        self.title, self.total, self.done = title, total, 0.0
        self.began = self.told = time.monotonic()
        self._write(title)

    def advance(self, amount: float, note: str = "") -> None:
        if not self.title:
            return
        self.done += amount
        now = time.monotonic()
        if now - self.told < self.interval:
            return
        self.told = now
        share = f"{min(self.done / self.total, 1):.0%}" if self.total else f"{self.done:,.0f}"
        self._write("  ".join(part for part in (f"{self.title}: {share}", f"{now - self.began:.0f} s", note) if part))

    def note(self, text: str) -> None:
        self._write(f"  {text}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._finish()

    def _finish(self) -> None:
        if self.title:
            self._write(f"{self.title}: done in {time.monotonic() - self.began:.1f} s")
        self.title = ""

    def _write(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class Live(Reporter):
    """rich's bars; finished stages stay on the screen with the time they took."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.bar: Bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=Console(file=stream),
            redirect_stdout=False,
        )
        self.task: Any = None

    def __enter__(self) -> Live:
        self.bar.start()
        return self

    def stage(self, title: str, total: float | None = None) -> None:
        self._finish()
        self.task = self.bar.add_task(title, total=total, note="")

    def advance(self, amount: float, note: str = "") -> None:
        if self.task is None:
            return
        self.bar.advance(self.task, amount)
        if note:
            self.bar.update(self.task, note=note)

    def note(self, text: str) -> None:
        self.bar.console.print(f"  {text}", markup=False, highlight=False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._finish()
        self.bar.stop()

    def _finish(self) -> None:
        """Fill the bar: a stage whose size was only estimated, or unknown, is done all the same."""
        if self.task is None:
            return
        task = next(t for t in self.bar.tasks if t.id == self.task)
        size = task.total if task.total else 1
        self.bar.update(self.task, total=size, completed=size, note="")
        self.bar.stop_task(self.task)
        self.task = None
