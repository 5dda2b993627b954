"""From query text to mixture: the gate and what it sees by, without the experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import numpy as np

from moe_router.data.embed import Embedder, query_text
from moe_router.data.records import Message
from moe_router.errors import LibraryError
from moe_router.experts.library import Library
from moe_router.gate.explain import Explanation, explain
from moe_router.gate.gate import Decisions, Gate
from moe_router.gate.sight import open_sight
from moe_router.workspace import Workspace

if TYPE_CHECKING:
    from moe_router.experts.base import Base

Query = str | Sequence[Message]


class Choice(TypedDict, total=False):
    """What a caller may ask of the gate, for all queries of a call."""

    mode: str | Sequence[str] | None
    """`top1`, `top2`, …, or `soft`, for all queries or one each (default: the gate's own)."""
    allowed: Sequence[str] | None
    """The only experts that may be used."""
    max_experts: int | None
    """Most experts of a query, which bounds its FLOPs (default: the gate's own; 0: as many as the mode keeps)."""


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
    message: str = ""
    """What is said instead of an answer, where the gate abstained and was told to say so."""

    def vector(self, names: Sequence[str]) -> np.ndarray:
        """Weights in the order of `names`: (experts,) float32."""
        return np.array([self.weights.get(name, 0.0) for name in names], dtype=np.float32)


class Selector:
    """Gate plus embedder: routes queries, and loads no base unless the gate sees its hidden states."""

    def __init__(self, gate: Gate, embedder: Embedder, has_shared: bool) -> None:
        self.gate, self.embedder, self.has_shared = gate, embedder, has_shared

    @classmethod
    def load(cls, library: Library, base: Base | None = None) -> Selector:
        """The gate of a library, over its base if that is loaded already.

        Raises LibraryError when there is none, or it belongs to another library.
        """
        gate = Gate.load(library.path, library)
        return cls(gate, open_sight(gate, library, base), library.has_shared)

    def route(self, queries: Sequence[Query], **choice: Unpack[Choice]) -> list[Route]:
        """One route per query, as `Gate.decide` decides; a query without words is abstained on.

        Raises LibraryError for an unknown mode or expert.
        """
        if not queries:
            return []
        texts = [query_text(as_messages(query)) for query in queries]
        decided = self.gate.decide(self.embedder.encode(texts), **choice)
        return [self._route(decided, i, bool(text.strip())) for i, text in enumerate(texts)]

    def _route(self, decided: Decisions, row: int, worded: bool) -> Route:
        abstains = bool(decided.abstained[row]) or not worded
        weights = decided.weights[row]
        order = [] if abstains else [i for i in np.argsort(-weights, kind="stable") if weights[i] > 0]
        return Route(
            weights={self.gate.names[i]: float(weights[i]) for i in order},
            confidence=float(decided.confidence[row]) if worded else 0.0,
            abstained=abstains,
            shared=self.has_shared and not (abstains and self.gate.abstain_to != "shared"),
            message=self.gate.abstain_message if abstains and self.gate.abstain_to == "message" else "",
        )


def as_messages(query: Query) -> tuple[Message, ...]:
    """A plain string is one user turn."""
    return (Message("user", query),) if isinstance(query, str) else tuple(query)


def route(path: str | Path, queries: Sequence[Query], **choice: Unpack[Choice]) -> list[Route]:
    """Route queries with the library at `path`; loads gate and embedder only, or the base where the gate sees its states."""
    if not queries:
        raise LibraryError("nothing to route: give at least one text")
    return Selector.load(Library.load(path)).route(queries, **choice)


def explained_routes(
    workspace: Workspace, texts: Sequence[str], explained: bool, **choice: Unpack[Choice]
) -> list[tuple[str, Route, Explanation | None]]:
    """Each text with its route and, where asked for, why it takes it; loads as `route` does."""
    selector = Selector.load(Library.load(workspace.experts))
    routes = selector.route(texts, **choice)
    reasons: list[Explanation | None] = [None] * len(texts)
    if explained:
        asked = [query_text(as_messages(text)) for text in texts]
        reasons = [*explain(selector.gate, selector.embedder, asked, workspace, choice.get("allowed"))]
    return list(zip(texts, routes, reasons, strict=True))
