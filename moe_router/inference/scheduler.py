"""Which request sits in which slot, and what each step does with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from moe_router.experts.base import Base
from moe_router.inference.cache import SlotCache
from moe_router.inference.prefix import PrefixCache
from moe_router.inference.requests import Piece, Ticket
from moe_router.inference.text import TextStream

SEEDS = 1 << 64


class Row:
    """A request in a slot: its tokens, how many of them the cache holds, its text, and its own random stream."""

    def __init__(self, ticket: Ticket, base: Base, context: int, owner: str) -> None:
        request = ticket.request
        self.ticket, self.owner, self.eos = ticket, owner, base.eos
        self.settings, self.mixture = request.settings, request.mixture
        self.tokens = [int(token) for token in request.tokens] or [base.eos]
        self.prompt = len(self.tokens)
        self.longest = min(self.prompt + request.settings.max_new_tokens, context)
        self.cached = 0
        self.finish = ""
        self.text = TextStream(base.tokenizer, request.stop)
        self._random = np.random.default_rng(request.settings.seed % SEEDS)

    @property
    def pending(self) -> int:
        """Tokens that the cache does not hold yet; 1 for a row that decodes, 0 when the next is to be chosen."""
        return len(self.tokens) - self.cached

    def uniform(self) -> float:
        """The row's next random number, 0 up to 1."""
        return self._random.random() if self.pending == 0 else 0.0

    def take(self, token: int) -> None:
        """Append the chosen token and tell the consumer."""
        if token == self.eos:
            self.end("stop")
            return
        self.tokens.append(token)
        new = self.text.add(token)
        if self.text.stopped:
            self.end("stop", new)
        elif len(self.tokens) >= self.longest:
            self.end("length", new)
        else:
            self._tell(new)

    def end(self, finish: str, new: str = "") -> None:
        """The row's last piece."""
        self.finish = finish
        self._tell(new + self.text.end(), finish)

    def fail(self, error: BaseException) -> None:
        """The consumer gets the error raised."""
        self.finish = "error"
        self.ticket.out.put(error)

    def _tell(self, text: str, finish: str = "") -> None:
        self.ticket.out.put(Piece(self.ticket.row, text, len(self.tokens) - self.prompt, finish))


class Scheduler:
    """Rows in slots: row i owns slot i, those that decode first, those that still read their prompt after them."""

    def __init__(self, cache: SlotCache, prefix: PrefixCache, prefill_tokens: int) -> None:
        self.cache, self.prefix, self.prefill_tokens = cache, prefix, prefill_tokens
        self.waiting: deque[Ticket] = deque()
        self.rows: list[Row] = []
        self.decoding = 0
        """How many of `rows` decode."""

    def admit(self, row_of: Callable[[Ticket], Row]) -> int:
        """Give free slots to those who wait, oldest first; how many tokens of their prompts were known."""
        known = 0
        while self.waiting and len(self.rows) < self.cache.slots:
            row = row_of(self.waiting.popleft())
            row.cached = self.prefix.load(row.owner, row.tokens, len(self.rows))
            known += row.cached
            self.rows.append(row)
            self._promote(len(self.rows) - 1)
        return known

    def chunk(self) -> int:
        """Prompt tokens that each row may read in this step: an equal share of the budget."""
        return max(1, self.prefill_tokens // max(1, len(self.rows) - self.decoding))

    def settle(self) -> None:
        """After a pass: slots of finished rows come back, rows that have read their prompt begin to decode."""
        for index in reversed(range(len(self.rows))):
            if self.rows[index].finish:
                self._release(index)
        for index in range(self.decoding, len(self.rows)):
            self._promote(index)

    def drop_cancelled(self) -> None:
        """End what its consumer no longer wants, whether it runs or waits."""
        for row in self.rows:
            if row.ticket.cancelled:
                row.end("cancelled")
        for ticket in [t for t in self.waiting if t.cancelled]:
            self.waiting.remove(ticket)
            ticket.out.put(Piece(ticket.row, "", 0, "cancelled"))
        self.settle()

    def _promote(self, index: int) -> None:
        if index >= self.decoding and self.rows[index].pending == 1:
            self._swap(index, self.decoding)
            self.decoding += 1

    def _release(self, index: int) -> None:
        row = self.rows[index]
        if row.finish == "error":
            self.cache.clear(index)
        else:
            self.prefix.save(row.owner, row.tokens[: row.cached], index)
        if index < self.decoding:
            self.decoding -= 1
            self._swap(index, self.decoding)
            index = self.decoding
        self._swap(index, len(self.rows) - 1)
        self.rows.pop()

    def _swap(self, one: int, other: int) -> None:
        self.cache.swap(one, other, max(self.rows[one].cached, self.rows[other].cached))
        self.rows[one], self.rows[other] = self.rows[other], self.rows[one]


def take_all(rows: Sequence[Row], tokens: Sequence[int], finite: Sequence[bool]) -> None:
    """Hand each row that is to choose its next token what was chosen; a row that is not finite ends alone."""
    for row, token, good in zip(rows, tokens, finite, strict=True):
        if not good:
            row.end("error")
        elif row.pending == 0:
            row.take(token)
