"""From tokens to text that can be shown, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TextStream:
    """Grows an answer's text, holding back what may still become a stop string, half a character, or trailing space.

    Each token is decoded together with the one or few before it, never with the whole answer, as tokenizers write a token
    differently at the start of a text.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.text = ""
        """All text so far."""
        self.stopped = False
        """Whether a stop string was found; `text` ends before it."""
        self._tokens: list[int] = []
        self._start = self._read = 0
        self._shown = 0

    def add(self, token: int) -> str:
        """The text that can be shown now and could not before; may be empty."""
        self._tokens.append(token)
        self._grow()
        if self.stopped:
            return self._show(len(self.text.rstrip()))
        return self._show(len(self.text) - held(self.text, self.stops))

    def end(self) -> str:
        """The rest, without trailing space."""
        self._grow(whole=True)
        self.text = self.text.rstrip()
        return self._show(len(self.text))

    def _grow(self, whole: bool = False) -> None:
        before = self.tokenizer.decode(self._tokens[self._start : self._read])
        now = self.tokenizer.decode(self._tokens[self._start :])
        if now.endswith("\ufffd") and not whole:
            return
        new = now[len(before) :]
        self.text += new if self.text else new.lstrip()
        if new:
            self._start, self._read = self._read, len(self._tokens)
        at = min((i for i in (self.text.find(stop, self._shown) for stop in self.stops) if i >= 0), default=-1)
        if at >= 0:
            self.text, self.stopped = self.text[:at], True

    def _show(self, until: int) -> str:
        new = self.text[self._shown : until]
        self._shown = max(self._shown, until)
        return new


def held(text: str, stops: Sequence[str]) -> int:
    """How many last characters must wait: the longest start of a stop string, and the space before it."""
    starts = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return len(text) - len(text[: len(text) - max(starts, default=0)].rstrip())
