"""The model-collapse guard: text that looks as if a model had written it from its own output. Flagged, never dropped.

Two signs (Shumailov et al. 2024; distinct-n is Li et al. 2016): an answer that repeats its own word runs, and a stretch of
a source whose answers have far fewer distinct word runs than the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from moe_router.data.cleaning.text import words

RUN = 4
REPEATED = 0.3
"""Share of an answer's runs of four words that are repeats, from which it is flagged."""
FEWEST_RUNS = 20
STRETCH = 2000
"""Words of answers that one distinct-n figure is taken over; the figure depends on it, so that it is always the same."""
FALLEN = 0.6
"""A stretch is flagged when its distinct-3 is less than this share of the reference."""


def repeats_itself(answer: str) -> bool:
    """Whether at least REPEATED of an answer's four-word runs occurred in it before."""
    tokens = words(answer)
    runs = len(tokens) - RUN + 1
    if runs < FEWEST_RUNS:
        return False
    return 1 - len(set(_runs(tokens, RUN))) / runs >= REPEATED


@dataclass(frozen=True)
class Stretch:
    """STRETCH words of the answers of one source, in order."""

    file: str
    first: int
    """Line of its first record."""
    last: int
    distinct: float
    """Distinct runs of three words over all of them."""


@dataclass
class Diversity:
    """Distinct-3 over the stretches of every source, as its answers go by."""

    stretches: list[Stretch] = field(default_factory=list)
    _open: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def add(self, file: str, line: int, answer: str) -> None:
        first, tokens = self._open.setdefault(file, (line, []))
        tokens += words(answer)
        if len(tokens) >= STRETCH:
            runs = list(_runs(tokens[:STRETCH], 3))
            self.stretches.append(Stretch(file, first, line, len(set(runs)) / len(runs)))
            del self._open[file]

    @property
    def reference(self) -> float:
        """The median over all stretches; 1 without any."""
        return median(stretch.distinct for stretch in self.stretches) if self.stretches else 1.0

    def fallen(self) -> list[Stretch]:
        """Stretches far less diverse than the reference."""
        limit = FALLEN * self.reference
        return [stretch for stretch in self.stretches if stretch.distinct < limit]


def _runs(tokens: Sequence[str], width: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[at:] for at in range(width)), strict=False)
