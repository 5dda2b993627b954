"""What long work says while it runs: one Protocol that the command line fills and everything else may leave silent."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives a stage's progress; all of it goes to stderr or nowhere."""

    def stage(self, title: str, total: float | None = None) -> None:
        """A new stage begins; `total` is its size in any unit."""

    def advance(self, amount: float, note: str = "") -> None:
        """`amount` more of the stage is done."""

    def note(self, text: str) -> None:
        """One line worth reading."""


class Silent:
    """Says nothing; the default for library use."""

    def stage(self, title: str, total: float | None = None) -> None: ...

    def advance(self, amount: float, note: str = "") -> None: ...

    def note(self, text: str) -> None: ...
