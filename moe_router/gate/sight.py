"""What the gate sees of a query: its sentence embedding, the base's hidden state, or both, as one unit vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from moe_router.data.embed import Embedder, load_embedder, query_text
from moe_router.errors import LibraryError
from moe_router.experts.library import Library

if TYPE_CHECKING:
    from moe_router.config import GateConfig
    from moe_router.data.slices import Slices
    from moe_router.experts.base import Base
    from moe_router.experts.train import Split
    from moe_router.gate.gate import Gate
    from moe_router.gate.hidden import Trunk

LEARNED = 4096
"""Most training queries whose states the main directions are taken from."""
FEATURES = ("embedding", "hidden", "both")
DIRECTIONS = 64
"""Main directions of the training queries' states that are kept, each brought to unit variance: states share most of their
length, and what tells queries apart is small beside it. 64 did better than 128 or all on the sample company."""


@dataclass(frozen=True, eq=False)
class View:
    """How embedding and hidden state become one vector; by default the embedding is all."""

    features: str = "embedding"
    layer: int = 0
    """Of the base, counted from 1; 0 where no state is read."""
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # (width,)
    main: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (width, directions)

    @classmethod
    def fitted(cls, features: str, layer: int, states: np.ndarray) -> View:
        """From the states of the training queries: (queries, width)."""
        mean = states.mean(0, dtype=np.float64)
        _, spread, directions = np.linalg.svd(states - mean, full_matrices=False)
        kept = min(DIRECTIONS, int((spread > 1e-6 * spread[0]).sum()))
        main = directions[:kept].T / (spread[:kept] / np.sqrt(len(states)))
        return cls(features, layer, mean.astype(np.float32), main.astype(np.float32))

    def of(self, embeddings: np.ndarray | None, states: np.ndarray | None) -> np.ndarray:
        """*Shape:* embeddings (queries, dimension), states (queries, width) → (queries, features), each of unit length."""
        if self.features == "embedding":
            return embeddings
        turned = (states - self.mean) @ self.main
        turned /= np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-9)
        if self.features == "hidden":
            return turned
        return np.concatenate([embeddings, turned], axis=1) * np.float32(np.sqrt(0.5))

    def check(self, dimension: int) -> None:
        """Raises ValueError where the parts do not fit each other or the gate's dimension."""
        width, kept = self.main.shape
        if self.features not in FEATURES or (self.layer >= 1) != (self.features != "embedding") or len(self.mean) != width:
            raise ValueError("features and hidden layer do not fit each other")
        if (self.features == "hidden" and kept != dimension) or (self.features == "both" and kept >= dimension):
            raise ValueError("the hidden state's directions do not fit the gate's dimension")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.main).all()):
            raise ValueError("holds NaN or infinity")


class Sight:
    """An Embedder that gives what the gate sees."""

    def __init__(self, view: View, id: str, digest: str, trunk: Trunk | None = None) -> None:
        """`id` and `digest` are the sentence embedder's; `trunk` reads the hidden states, where the view has any."""
        self.id, self.digest, self.view, self._trunk = id, digest, view, trunk

    @cached_property
    def embedder(self) -> Embedder | None:
        """Loaded when it is first needed. Raises LibraryError for one that the gate was not fitted with."""
        if self.view.features == "hidden":
            return None
        found = load_embedder(self.id)
        if found.digest != self.digest:
            raise LibraryError(f"embedder {self.id!r} is not the one the gate was fitted with: run `moe-router train-gate`")
        return found

    @property
    def dimension(self) -> int:
        return (self.embedder.dimension if self.embedder else 0) + self.view.main.shape[1]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """*Shape:* (texts, dimension) float32, each of unit length."""
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        embeddings = self.embedder.encode(texts) if self.embedder else None
        return self.view.of(embeddings, self._trunk.states(texts) if self._trunk else None)

    def of(self, split: Split) -> np.ndarray:
        """The same of records whose embeddings are known: (records, dimension)."""
        return self.view.of(split.embeddings, self._trunk.states(_texts(split)) if self._trunk else None)


def fit_sight(settings: GateConfig, train: Split, slices: Slices, library: Library, base: Base) -> Sight:
    """What a gate shall see by, from the training records of its experts; adapters on the base do not matter."""
    view, trunk = View(), None
    if settings.features != "embedding":
        trunk = _trunk(settings.hidden_layer, library, base)
        rows = np.random.default_rng(settings.seed).permutation(len(train.records))[:LEARNED]
        view = View.fitted(settings.features, settings.hidden_layer, trunk.states(_texts(train.only(np.sort(rows)))))
    return Sight(view, slices.embedder, slices.embedder_digest, trunk)


def open_sight(gate: Gate, library: Library, base: Base | None = None) -> Sight:
    """What a gate sees by, loaded: its embedder, the base's first layers, or both.

    `base` is the library's, if it is there already; adapters on it do not matter. Raises LibraryError for an embedder or base
    that the gate was not fitted with.
    """
    trunk = _trunk(gate.view.layer, library, base) if gate.view.layer else None
    found = Sight(gate.view, gate.embedder, gate.embedder_digest, trunk)
    if found.dimension != gate.dimension:
        raise LibraryError(f"embedder {gate.embedder!r} has other dimensions than the gate: run `moe-router train-gate`")
    return found


def _trunk(layer: int, library: Library, base: Base | None) -> Trunk:
    from moe_router.experts.base import load_base
    from moe_router.gate.hidden import Trunk

    base = base or load_base(library.base)
    if base.digest != library.base_digest:
        raise LibraryError(f"base {base.id!r} is not the one the gate was fitted with: run `moe-router train-gate`")
    return Trunk(base, layer, library.template)


def _texts(split: Split) -> list[str]:
    return [query_text(record.messages) for record in split.records]
