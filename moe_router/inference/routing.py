"""From query text to mixture, without the base: the gate and its embedder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_router.data.embed import Embedder, load_embedder, query_text
from moe_router.data.records import Message
from moe_router.errors import LibraryError
from moe_router.experts.library import Library
from moe_router.gate.gate import Gate

Query = str | Sequence[Message]


@dataclass(frozen=True)
class Route:
    """The gate's decision for one query."""

    weights: dict[str, float]
    """Experts used and their weights, largest first; empty when the gate abstained."""
    confidence: float
    """Calibrated probability that the first expert is the right one."""
    abstained: bool
    shared: bool
    """Whether the shared expert takes part."""

    def vector(self, names: Sequence[str]) -> np.ndarray:
        """Weights in the order of `names`: (experts,) float32."""
        return np.array([self.weights.get(name, 0.0) for name in names], dtype=np.float32)


class Selector:
    """Gate plus embedder: routes queries and loads no base."""

    def __init__(self, gate: Gate, embedder: Embedder, has_shared: bool) -> None:
        self.gate, self.embedder, self.has_shared = gate, embedder, has_shared

    @classmethod
    def load(cls, library: Library) -> Selector:
        """The gate of a library. Raises LibraryError when there is none, or it belongs to another library."""
        gate = Gate.load(library.path, library)
        embedder = load_embedder(gate.embedder)
        if embedder.digest != gate.embedder_digest:
            raise LibraryError(
                f"embedder {gate.embedder!r} is not the one the gate was fitted with: run `moe-router train-gate`"
            )
        return cls(gate, embedder, library.has_shared)

    def route(self, queries: Sequence[Query], mode: str | None = None, allowed: Sequence[str] | None = None) -> list[Route]:
        """One route per query; `mode` is `top1`, `top2` or `soft`, `allowed` restricts the experts."""
        if not queries:
            return []
        texts = [query_text(as_messages(query)) for query in queries]
        decisions = self.gate.decide(self.embedder.encode(texts), mode=mode, allowed=allowed)
        routes = []
        for text, weights, confidence, abstained in zip(
            texts, decisions.weights, decisions.confidence, decisions.abstained, strict=True
        ):
            abstains = bool(abstained) or not text.strip()
            order = [] if abstains else [i for i in np.argsort(-weights, kind="stable") if weights[i] > 0]
            routes.append(
                Route(
                    weights={self.gate.names[i]: float(weights[i]) for i in order},
                    confidence=0.0 if not text.strip() else float(confidence),
                    abstained=abstains,
                    shared=self.has_shared and not (abstains and self.gate.abstain_to == "base"),
                )
            )
        return routes


def as_messages(query: Query) -> tuple[Message, ...]:
    """A plain string is one user turn."""
    return (Message("user", query),) if isinstance(query, str) else tuple(query)


def route(path: str | Path, queries: Sequence[Query]) -> list[Route]:
    """Route queries with the library at `path`; loads gate and embedder only."""
    if not queries:
        raise LibraryError("nothing to route: give at least one text")
    return Selector.load(Library.load(path)).route(queries)
