"""Router: the one object that most programs need."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moe_router.config import GenerationConfig
from moe_router.data.templates import template
from moe_router.experts.base import Base, load_base
from moe_router.experts.encode import encode_prompt
from moe_router.experts.library import Library
from moe_router.inference.engine import Engine, Piece, Request
from moe_router.inference.routing import Query, Route, Selector, as_messages


@dataclass(frozen=True)
class Usage:
    """What an answer cost."""

    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish: str
    """`stop`, `length` or `error`."""


@dataclass(frozen=True)
class Answer:
    """An answer, the route that gave it, and what it cost."""

    text: str
    route: Route
    usage: Usage

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Stream:
    """An answer while it grows: iterate for pieces of text; `route` is known from the start."""

    route: Route
    _pieces: Iterator[Piece] = field(repr=False)

    def __iter__(self) -> Iterator[str]:
        return (piece.text for piece in self._pieces if piece.text)


class Router:
    """Answers queries with the mixture of experts that the gate picks for each.

    Safe to use from several threads; deterministic for a given seed.
    """

    def __init__(self, library: Library, engine: Engine, selector: Selector | None, generation: GenerationConfig) -> None:
        """Without a selector, every call must bring its routes."""
        self.library, self.engine, self.selector, self.generation = library, engine, selector, generation
        self._template = template(library.template)

    @classmethod
    def load(
        cls, path: str | Path = "experts", *, base: Base | None = None, generation: GenerationConfig | None = None
    ) -> Router:
        """Load base, experts and gate of the library at `path`, once.

        Raises LibraryError or BaseModelError when something is missing, damaged, or made for another base.
        """
        library = Library.load(path)
        selector = Selector.load(library)
        engine = Engine(library.open(base or load_base(library.base)))
        return cls(library, engine, selector, generation or GenerationConfig())

    @property
    def names(self) -> tuple[str, ...]:
        """The routed experts."""
        return self.library.names

    def route(self, queries: Sequence[Query], mode: str | None = None, allowed: Sequence[str] | None = None) -> list[Route]:
        """The gate's decisions alone."""
        return self.selector.route(queries, mode, allowed)

    def ask(self, query: Query, generation: GenerationConfig | None = None) -> Answer:
        """Answer one query."""
        return self.ask_many([query], generation)[0]

    def ask_many(
        self,
        queries: Sequence[Query],
        generation: GenerationConfig | None = None,
        routes: Sequence[Route] | None = None,
    ) -> list[Answer]:
        """Answer several queries in one batch, each row with its own mixture; `routes` overrides the gate."""
        if not queries:
            return []
        start = time.perf_counter()
        routes = self.route(queries) if routes is None else routes
        requests = [self._request(q, r, generation) for q, r in zip(queries, routes, strict=True)]
        texts = [""] * len(requests)
        usages: dict[int, Usage] = {}
        for piece in self.engine.generate(requests):
            texts[piece.row] += piece.text
            if piece.finish:
                seconds = time.perf_counter() - start
                usages[piece.row] = Usage(len(requests[piece.row].tokens), piece.tokens, seconds, piece.finish)
        return [Answer(text, routes[i], usages[i]) for i, text in enumerate(texts)]

    def stream(self, query: Query, generation: GenerationConfig | None = None) -> Stream:
        """Answer one query piece by piece."""
        found = self.route([query])[0]
        return Stream(found, self.engine.generate([self._request(query, found, generation)]))

    def _request(self, query: Query, found: Route, generation: GenerationConfig | None) -> Request:
        return Request(
            tokens=encode_prompt(as_messages(query), self.engine.base, self.library.template),
            weights=found.vector(self.names),
            shared=found.shared,
            settings=generation or self.generation,
            stop=self._template.stop,
        )
