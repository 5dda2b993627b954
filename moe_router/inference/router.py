"""Router: the one object that most programs need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from moe_router.config import GenerationConfig
from moe_router.data.templates import template
from moe_router.errors import LibraryError
from moe_router.experts.base import Base, load_base
from moe_router.experts.encode import encode_prompt
from moe_router.experts.library import Library
from moe_router.inference.engine import Engine, Generation, Request
from moe_router.inference.requests import EngineConfig, Piece
from moe_router.inference.routing import Choice, Query, Route, Selector, as_messages
from moe_router.progress import Progress, Silent

if TYPE_CHECKING:
    from moe_router.inference.conversation import Conversation


@dataclass(frozen=True)
class Usage:
    """What an answer cost."""

    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish: str
    """`stop`, `length`, `error` (not finite) or `cancelled`."""
    first_seconds: float = 0.0
    """Until the first token; like `seconds` it includes the gate's decision and waiting for a slot."""


@dataclass(frozen=True)
class Answer:
    """An answer, the route that gave it, and what it cost."""

    text: str
    route: Route
    usage: Usage

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Stream:
    """An answer while it grows: iterate for pieces of text.

    `route` is known from the start, `text` grows, and `usage` is there at the end. Dropping a stream cancels it.
    """

    def __init__(self, route: Route, generation: Generation | Said, meter: _Meter, done: Callable[[str], None]) -> None:
        """`done` is called with the whole text when the answer has ended."""
        self.route = route
        self.text = ""
        self.usage: Usage
        self._generation, self._meter, self._done = generation, meter, done

    def cancel(self) -> None:
        """Let the answer end here, from any thread; what is still to be read are the pieces made before."""
        self._generation.cancel()

    def answer(self) -> Answer:
        """Wait for the rest."""
        for _ in self:
            pass
        return Answer(self.text, self.route, self.usage)

    def __iter__(self) -> Iterator[str]:
        for piece in self._generation:
            self.text += piece.text
            usage = self._meter.read(piece)
            if usage is not None:
                self.usage = usage
                self._done(self.text)
            if piece.text:
                yield piece.text


class Said:
    """A fixed text where a generation would be: what a gate that abstains says."""

    def __init__(self, text: str) -> None:
        self._piece = Piece(0, text, 0, "stop")

    def __iter__(self) -> Iterator[Piece]:
        yield self._piece

    def cancel(self) -> None:
        """Nothing runs."""


class _Meter:
    """Times the pieces of requests that start now."""

    def __init__(self, start: float, requests: Sequence[Request]) -> None:
        self.start, self.requests = start, requests
        self._first: dict[int, float] = {}

    def read(self, piece: Piece) -> Usage | None:
        """The usage of the piece's row, once it is the last."""
        seconds = time.perf_counter() - self.start
        first = self._first.setdefault(piece.row, seconds)
        if not piece.finish:
            return None
        return Usage(len(self.requests[piece.row].tokens), piece.tokens, seconds, piece.finish, first)


class Router:
    """Answers queries with the mixture of experts that the gate picks for each.

    Safe to use from several threads; deterministic for a given seed.
    """

    def __init__(
        self,
        library: Library,
        engine: Engine,
        selector: Selector | None,
        generation: GenerationConfig,
        *,
        cut: bool = False,
    ) -> None:
        """Without a selector, every call must bring its routes. `cut` drops the start of a prompt that is too long."""
        self.library, self.engine, self.selector, self.generation, self.cut = library, engine, selector, generation, cut
        self._template = template(library.template, engine.base.tokenizer)

    @classmethod
    def load(
        cls,
        path: str | Path = "experts",
        *,
        base: Base | None = None,
        generation: GenerationConfig | None = None,
        engine: EngineConfig | None = None,
        progress: Progress | None = None,
    ) -> Router:
        """Load base, experts and gate of the library at `path`, once.

        Raises LibraryError or BaseModelError when something is missing, damaged, or made for another base, ConfigError
        when the KV cache does not fit.
        """
        progress = progress or Silent()
        progress.stage("base")
        library = Library.load(path)
        base = base or load_base(library.base)
        progress.stage("gate")
        selector = Selector.load(library, base)
        progress.stage("experts")
        model = library.open(base)
        progress.stage("engine")
        made = Engine(model, engine, library=f"{library.base_digest} {library.digest}")
        return cls(library, made, selector, generation or GenerationConfig())

    @property
    def names(self) -> tuple[str, ...]:
        """The routed experts."""
        return self.library.names

    def route(self, queries: Sequence[Query], **choice: Unpack[Choice]) -> list[Route]:
        """The gate's decisions alone, as `Selector.route`. Raises LibraryError for a router that was made without a gate."""
        if self.selector is None:
            raise LibraryError(f"{self.library.path} is used without a gate: give the routes, or open it with Router.load")
        return self.selector.route(queries, **choice)

    def ask(self, query: Query, generation: GenerationConfig | None = None, **choice: Unpack[Choice]) -> Answer:
        """Answer one query; `mode`, `allowed` and `max_experts` are as in `route`.

        Raises InputError when it is longer than the base can read, LibraryError for an unknown mode or expert.
        """
        return self.ask_many([query], generation, **choice)[0]

    def ask_many(
        self,
        queries: Sequence[Query],
        generation: GenerationConfig | None = None,
        routes: Sequence[Route] | None = None,
        **choice: Unpack[Choice],
    ) -> list[Answer]:
        """Answer several queries, each with its own mixture; `routes` overrides the gate, `choice` is as in `route`.

        They share the running batch with whatever other threads ask. Raises InputError when one of them is longer than
        the base can read, before any is answered.
        """
        start = time.perf_counter()
        routes = self.route(queries, **choice) if routes is None else routes
        answered = [i for i, (_, found) in enumerate(zip(queries, routes, strict=True)) if not found.message]
        requests = [self._request(queries[i], routes[i], generation) for i in answered]
        texts = [found.message for found in routes]
        usages = [Usage(0, 0, 0.0, "stop")] * len(texts)
        meter = _Meter(start, requests)
        for piece in self.engine.start(requests):
            row = answered[piece.row]
            texts[row] += piece.text
            usages[row] = meter.read(piece) or usages[row]
        return [Answer(*row) for row in zip(texts, routes, usages, strict=True)]

    def stream(
        self,
        query: Query,
        generation: GenerationConfig | None = None,
        route: Route | None = None,
        *,
        conversation: str = "",
        done: Callable[[str], None] = lambda text: None,
        **choice: Unpack[Choice],
    ) -> Stream:
        """Answer one query piece by piece; `route` overrides the gate, `choice` is as there, `conversation` as in Request.

        Raises InputError when the query is longer than the base can read. `done` receives the text at the end.
        """
        start = time.perf_counter()
        found = self.route([query], **choice)[0] if route is None else route
        request = self._request(query, found, generation, conversation)
        growing = Said(found.message) if found.message else self.engine.start([request])
        return Stream(found, growing, _Meter(start, [request]), done)

    def conversation(self, **options: Any) -> Conversation:
        """A conversation with a memory; the options are Conversation's."""
        from moe_router.inference.conversation import Conversation

        return Conversation(self, **options)

    def prompt_tokens(self, query: Query) -> list[int]:
        """The prompt as the base reads it."""
        return encode_prompt(as_messages(query), self.engine.base, self.library.template)

    def room(self, generation: GenerationConfig | None = None) -> int:
        """Longest prompt, in tokens, that leaves space for the longest answer."""
        return max(1, self.engine.context - (generation or self.generation).max_new_tokens)

    def _request(self, query: Query, found: Route, generation: GenerationConfig | None, conversation: str = "") -> Request:
        tokens = self.prompt_tokens(query)
        return Request(
            tokens=tokens[-self.room(generation) :] if self.cut else tokens,
            weights=found.vector(self.names),
            shared=found.shared,
            settings=generation or self.generation,
            stop=self._template.stop,
            conversation=conversation,
        )
