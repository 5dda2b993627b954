"""A query cut into pieces that an embedder can read whole, and what each counts for.

A query may hold several turns, separated by TURN. Each is embedded by itself; a turn counts DECAY times as much as the one
after it, and one of few words less, since "yes, please" says little of the subject. On single-domain dialogues of
schema-guided-dialogue, of which half were given a start of another domain, logistic regression on the mean of the turns
found the domain in 93 % of 300, against 85 % on all turns read as one text. A turn longer than the embedder's window is read
in windows, so that its end counts as its start does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TURN = "\x1e"
"""Between the turns of a query: the ASCII record separator."""
TURNS = 8
"""Most turns of a query; an older one would count little."""
DECAY = 0.7
FULL_WEIGHT = 60
"""A turn of this many characters counts in full, a shorter one in proportion."""
WINDOWS = 16
"""Most windows of a turn; a longer turn is read at as many even distances."""


@dataclass(frozen=True)
class Piece:
    """A text of at most one window, and its weight among the pieces of its query."""

    text: str
    weight: float


def pieces(query: str, window: int, cut: Callable[[str], list[str]]) -> list[Piece]:
    """The pieces of a query, at least one; what is not valid Unicode becomes question marks.

    `window` is the embedder's, in tokens, `cut` divides a text into windows of it. A token has a character or more, so a turn
    of fewer characters than that is one piece.
    """
    said = [turn for turn in query.encode("utf-8", "replace").decode().split(TURN) if turn.strip()]
    turns = said[-TURNS:] if said else [""]
    found = []
    for age, turn in enumerate(reversed(turns)):
        windows = [turn] if len(turn) <= window else evenly(cut(excerpt(turn, window)))
        weight = DECAY**age * min(1.0, len(turn.strip()) / FULL_WEIGHT)
        found += [Piece(text, weight * max(1, len(text)) / max(1, sum(map(len, windows)))) for text in windows]
    return found


def excerpt(turn: str, window: int) -> str:
    """The turn, or of a huge one stretches at even distances, so that no more is tokenised than can be read."""
    stretch = 8 * window  # characters: more than a window's tokens have in any script
    if len(turn) <= WINDOWS * stretch:
        return turn
    starts = [i * (len(turn) - stretch) // (WINDOWS - 1) for i in range(WINDOWS)]
    return " ".join(turn[start : start + stretch] for start in starts)


def evenly(windows: list[str]) -> list[str]:
    """At most WINDOWS of them, the first and the last included."""
    if len(windows) <= WINDOWS:
        return windows
    return [windows[i * (len(windows) - 1) // (WINDOWS - 1)] for i in range(WINDOWS)]
