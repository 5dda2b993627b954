"""The token generator: every consumer, from `ask` to a server, reads its tokens from `Engine.start`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import torch

from moe_router.errors import ConfigError, InputError
from moe_router.experts.adapters import RoutedModel
from moe_router.inference.cache import CacheShape, SlotCache
from moe_router.inference.forward import EagerForward, Forward
from moe_router.inference.graphs import GraphForward
from moe_router.inference.prefix import PrefixCache
from moe_router.inference.requests import EngineConfig, Piece, Request, Ticket
from moe_router.inference.sampling import choose
from moe_router.inference.scheduler import Row, Scheduler, take_all
from moe_router.kernels import plain

__all__ = ["Engine", "EngineConfig", "Generation", "Piece", "Request"]


@dataclass
class Stats:
    """What the engine has done so far."""

    requests: int = 0
    known_tokens: int = 0
    """Prompt tokens found in the prefix cache."""
    tokens: int = 0
    """Tokens read by the base, of prompts and of answers."""
    passes: int = 0
    most_rows: int = 0
    """Rows of the largest pass."""


class Engine:
    """Continuous batching over one base, each row with a mixture of its own.

    Safe to use from several threads. The one thread that touches the model lives as long as there is work, so that an
    engine needs no closing and leaves the model alone when it has nothing to do.
    """

    def __init__(self, model: RoutedModel, config: EngineConfig | None = None, library: str = "") -> None:
        """`library` names the experts in the prefix cache's keys. Raises ConfigError when the cache does not fit."""
        config = config or EngineConfig()
        self.model, self.base, self.library = model, model.base, library
        shape = CacheShape.of(self.base)
        self.context = min(shape.context, config.context or shape.context)
        with torch.inference_mode():
            self.cache = SlotCache(shape, config.slots, self.context, self.base.device)
        self.prefix = PrefixCache(self.cache, config.prefix_bytes)
        eager = EagerForward(model, self.cache, kernels=None if config.kernels else plain)
        self.forward: Forward = GraphForward(eager) if config.graphs and self.base.device.type == "cuda" else eager
        self.stats = Stats()
        self._scheduler = Scheduler(self.cache, self.prefix, config.prefill_tokens)
        self._arrived: list[Ticket] = []
        self._lock = threading.Lock()
        self._running = False
        self._thread = threading.Thread()

    @property
    def free(self) -> int:
        """Slots without a row."""
        return self.cache.slots - len(self._scheduler.rows)

    def start(self, requests: Sequence[Request]) -> Generation:
        """Queue requests; they join the running batch as slots become free. Raises InputError for one that cannot fit."""
        for request in requests:
            self.check(request)
        return Generation(self, requests)

    def check(self, request: Request) -> None:
        """Raises InputError when the prompt leaves no room for an answer, or the weights are not this library's."""
        if len(request.tokens) >= self.context:
            raise InputError(
                f"the prompt has {len(request.tokens):,} tokens and prompt and answer together may have {self.context:,}: "
                "shorten it"
            )
        weights, experts = np.asarray(request.weights), len(self.model.layout.names)
        if weights.shape != (experts,) or not np.isfinite(weights).all():
            raise InputError(f"weights {weights}: give one finite number for each of the {experts} experts")

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Hand over tickets whose requests `check` has passed."""
        with self._lock:
            self._arrived += tickets
            if not self._running:
                self._running = True
                self._thread = threading.Thread(target=self._work, name="moe-router-engine")
                self._thread.start()

    def wait(self) -> None:
        """Return when nothing runs or waits any more, so that the model may be used or detached."""
        with self._lock:
            thread = self._thread if self._running else None
        if thread is not None:
            thread.join()

    def refresh(self) -> None:
        """After the experts' factors were changed in place, with nothing running: forget what was made of them."""
        self.forward.refresh()
        self.prefix.clear()

    @torch.inference_mode()
    def _work(self) -> None:
        while self._collect():
            try:
                self._step()
            except BaseException as error:  # noqa: BLE001 - a consumer in another thread raises it
                self._abandon(error)

    def _collect(self) -> bool:
        """Take in what has arrived; False, and the thread is over, when there is nothing to do."""
        with self._lock:
            self._scheduler.waiting.extend(self._arrived)
            self.stats.requests += len(self._arrived)
            self._arrived = []
            self._running = bool(self._scheduler.waiting or self._scheduler.rows)
            return self._running

    def _step(self) -> None:
        plan = self._scheduler
        plan.drop_cancelled()
        self.stats.known_tokens += plan.admit(self._row)
        if plan.decoding < len(plan.rows):
            self._pass(plan.decoding, len(plan.rows), plan.chunk())
            plan.settle()
        if plan.decoding:
            self._pass(0, plan.decoding, 1)
            plan.settle()

    def _pass(self, first: int, stop: int, chunk: int) -> None:
        """Rows `first` to `stop` read up to `chunk` pending tokens each; those with none left get their next."""
        rows = self._scheduler.rows[first:stop]
        chunks = [row.tokens[row.cached : row.cached + chunk] for row in rows]
        try:
            logits = self.forward(chunks, [row.cached for row in rows], first, [row.mixture for row in rows])
            for row, read in zip(rows, chunks, strict=True):
                row.cached += len(read)
            self.stats.passes += 1
            self.stats.tokens += sum(map(len, chunks))
            self.stats.most_rows = max(self.stats.most_rows, len(rows))
            tokens = choose(logits, [row.settings for row in rows], [row.uniform() for row in rows])
            found = torch.stack([tokens, logits.isfinite().all(-1)], 1).tolist()
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            refusal = ConfigError(
                f"out of memory reading {len(rows)} rows of up to {max(map(len, chunks))} tokens beside a KV cache of "
                f"{self.cache.gib:.2f} GiB ({self.cache.slots} slots of {self.context:,} tokens): "
                "lower the engine's slots, context or prefill_tokens"
            )
            for row in rows:
                row.fail(refusal)
            return
        take_all(rows, *zip(*found, strict=True))

    def _row(self, ticket: Ticket) -> Row:
        request = ticket.request
        owner = f"conversation {request.conversation}" if request.conversation else f"{self.library} {request.mixture}"
        return Row(ticket, self.base, self.context, owner)

    def _abandon(self, error: BaseException) -> None:
        """After a failure that is nobody's in particular: everyone gets it, and the engine starts afresh."""
        plan = self._scheduler
        for ticket in [*(row.ticket for row in plan.rows), *plan.waiting]:
            ticket.out.put(error)
        plan.rows.clear()
        plan.waiting.clear()
        plan.decoding = 0
        self.cache.kv.zero_()


class Generation:
    """Requests in flight: iterate for their pieces. Dropping it cancels what still runs."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._out: SimpleQueue[Piece | BaseException] = SimpleQueue()
        self._tickets = [Ticket(request, row, self._out) for row, request in enumerate(requests)]
        self._open = len(self._tickets)
        if self._tickets:
            engine.submit(self._tickets)

    def cancel(self) -> None:
        """End all rows that still run, from any thread; their last piece says `cancelled`."""
        for ticket in self._tickets:
            ticket.cancelled = True

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        """Raises what went wrong in the engine: ConfigError when memory ran out."""
        if not self._open:
            raise StopIteration
        item = self._out.get()
        if isinstance(item, BaseException):
            self._open = 0
            self.cancel()
            raise item
        self._open -= bool(item.finish)
        return item

    def __del__(self) -> None:
        self.cancel()


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
