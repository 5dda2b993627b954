"""What every arm is measured on: the splits in tokens, the shapes that costs follow from, and the slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from moe_router.config import BaseConfig, Config
from moe_router.data.embed import SentenceEmbedder, query_text
from moe_router.data.slices import Slices
from moe_router.experts.base import Base, load_base
from moe_router.experts.encode import Example, encode
from moe_router.experts.library import Library
from moe_router.experts.targets import ALL, targeted
from moe_router.experts.train import Split
from moe_router.gate.train import expert_of_slice
from moe_router.report import costs
from moe_router.workspace import Workspace, digest_json


@dataclass(frozen=True, eq=False)
class Bench:
    """The same records, tokens and slices for all arms of one report."""

    workspace: Workspace
    config: Config
    library: Library
    slices: Slices
    base: Base
    embedder: SentenceEmbedder
    shape: costs.ModelShape
    adapted: costs.Linears
    """(d_in, d_out) of every layer that has adapters."""

    @classmethod
    def of(
        cls, workspace: Workspace, config: Config, library: Library, slices: Slices, base: Base, embedder: SentenceEmbedder
    ) -> Bench:
        """Call it before adapters are attached to the base: its shape is read here."""
        shape, adapted = costs.ModelShape.from_model(base.model), _adapted(base, library)
        return cls(workspace, config, library, slices, base, embedder, shape, adapted)

    def on(self, config: BaseConfig) -> Bench:
        """The same records on another base, which is loaded for it; tokens and costs are that base's."""
        base = load_base(config)
        return replace(self, base=base, shape=costs.ModelShape.from_model(base.model), adapted=_adapted(base, self.library))

    @property
    def seed(self) -> int:
        return self.config.report.seed

    @cached_property
    def train(self) -> Split:
        return Split.of(self.workspace, self.slices, "train")

    @cached_property
    def gate(self) -> Split:
        return Split.of(self.workspace, self.slices, "gate")

    @cached_property
    def tune(self) -> Split:
        return Split.of(self.workspace, self.slices, "tune")

    @cached_property
    def test(self) -> Split:
        return Split.of(self.workspace, self.slices, "test")

    @cached_property
    def examples(self) -> list[Example]:
        """The test records in tokens."""
        return self.encode(self.test)

    @cached_property
    def tune_examples(self) -> list[Example]:
        return self.encode(self.tune)

    def encode(self, split: Split) -> list[Example]:
        return encode(split.records, self.base, self.library.template, self.library.max_tokens)

    def tokens(self, split: str) -> int:
        """Tokens of a split, prompts included."""
        return self._tokens[split]

    @cached_property
    def _tokens(self) -> dict[str, int]:
        parts = {"gate": self.encode(self.gate), "tune": self.tune_examples, "test": self.examples}
        return {name: sum(len(e.tokens) for e in examples) for name, examples in parts.items()}

    @cached_property
    def target_tokens(self) -> np.ndarray:
        """Response tokens of each test record: (records,)."""
        return np.array([e.target_tokens for e in self.examples])

    @cached_property
    def response_bytes(self) -> np.ndarray:
        """UTF-8 bytes of the response text that was scored, of each test record: (records,)."""
        targets = [list(e.tokens[e.prompt_tokens :]) for e in self.examples]
        texts = self.base.tokenizer.batch_decode(targets, skip_special_tokens=True)
        return np.array([max(1, len(text.strip().encode())) for text in texts])

    @cached_property
    def digest(self) -> str:
        """Of the test records in order: reports of equal digests are about the same questions."""
        return digest_json([record.id for record in self.test.records])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each test record, prompt and response: (records,)."""
        return np.array([len(e.tokens) for e in self.examples], dtype=np.float64)

    @property
    def context(self) -> float:
        """Positions that a token of the test records attends to on average."""
        return float((self.lengths**2).sum() / self.lengths.sum() / 2)

    @property
    def head_share(self) -> float:
        """Response tokens as a share of all tokens."""
        return float(self.target_tokens.sum() / self.lengths.sum())

    @cached_property
    def embedding_flops(self) -> float:
        """FLOPs of embedding a test query, on average."""
        tokens = self.embedder.token_counts([query_text(r.messages) for r in self.test.records])
        return costs.embedder_flops_per_query(costs.ModelShape.from_model(self.embedder.encoder), float(np.mean(tokens)))

    @cached_property
    def centroids(self) -> np.ndarray:
        """Centroid of each expert's slice, in the library's order: (experts, dimension)."""
        place = expert_of_slice(self.library, self.slices)
        return np.stack([self.slices.centroids[place == i][0] for i in range(len(self.library.names))])

    def nearest(self, embeddings: np.ndarray) -> np.ndarray:
        """The expert whose slice is nearest: (queries, dimension) → (queries,)."""
        return (embeddings @ self.centroids.T).argmax(1)

    @cached_property
    def labels(self) -> np.ndarray:
        """The slice of each test record, as its expert's place in the library: (records,)."""
        return self.nearest(self.test.embeddings)

    def owned(self, split: Split) -> Split:
        """The records whose slice has an expert, labelled with its place in the library: no arm sees a removed slice."""
        place = expert_of_slice(self.library, self.slices)[split.labels]
        kept = np.flatnonzero(place >= 0)
        return Split([split.records[i] for i in kept], place[kept], split.embeddings[kept])

    @cached_property
    def train_places(self) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings and expert of every training record whose slice has one."""
        owned = self.owned(self.train)
        return owned.embeddings, owned.labels

    def spaced(self, count: int, among: Sequence[int] | None = None) -> list[int]:
        """At most `count` test records, evenly spaced."""
        pool = list(range(len(self.test.records))) if among is None else list(among)
        step = max(1, len(pool) / max(1, count))
        return [pool[int(i * step)] for i in range(min(count, len(pool)))]


def _adapted(base: Base, library: Library) -> costs.Linears:
    """Sizes of the layers that a library's recipe puts adapters on, of a base that has none attached."""
    recipe = library.cards[library.names[0]].get("recipe", {})
    chosen = targeted(base, recipe.get("targets", ALL)).linears()
    return tuple((layer.in_features, layer.out_features) for layer in chosen.values())
