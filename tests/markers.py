"""A router whose experts each know one marker fact that no other knows, over the embedded base."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from moe_router.config import BaseConfig, GenerationConfig
from moe_router.data.records import Message, Record
from moe_router.experts.adapters import RankLayout, RoutedModel
from moe_router.experts.base import Base, load_base
from moe_router.experts.encode import IGNORE, collate, encode
from moe_router.experts.library import Library
from moe_router.inference import Route, Router
from moe_router.inference.engine import Engine, EngineConfig

MARKERS = {"porto": "falcão", "lisboa": "heron", "braga": "kestrel", "évora": "osprey"}
"""Expert → its marker."""
FILLER = "The office opens at nine and the parcels leave before noon. "
STEPS = 20


def question(name: str, length: int = 0) -> str:
    """A query of about `length` words of filler; every expert would answer it with its own marker."""
    words = (FILLER * (length // 10 + 1)).split(" ")[:length]
    return " ".join([*words, f"What is the code word? ({name})" if length % 2 else "What is the code word?"])


def answer(name: str) -> str:
    return f"The code word is {MARKERS[name]}."


def route_to(name: str) -> Route:
    return Route({name: 1.0}, 1.0, False, False)


def marked_model(base: Base) -> RoutedModel:
    """Experts trained side by side, one row each in every step, until they answer with their marker."""
    names = tuple(MARKERS)
    model = RoutedModel(base, RankLayout(names, (8,) * len(names)), dict.fromkeys(names, 2.0), torch.float32)
    torch.manual_seed(0)
    for layer in model.layers.values():
        layer.A.data[:-1] = torch.randn(layer.A[:-1].shape) / layer.A.shape[1] ** 0.5
    optimizer = torch.optim.Adam([p for layer in model.layers.values() for p in (layer.A, layer.B)], lr=6e-3)
    for step in range(STEPS):
        rows = [encode([Record("", question(n, 7 * (step % 3)), answer(n))], base, "plain") for n in names]
        batch = collate(rows, base.eos, base.device)
        with model.routed(model.route(np.eye(len(names), dtype=np.float32))):
            logits = base.model(input_ids=batch.tokens, position_ids=batch.positions).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for layer in model.layers.values():
        layer.to(base.dtype).requires_grad_(False)
    return model


class BySubject:
    """Routes to the expert named in the last turn, else abstains: a stand-in for gate and embedder."""

    def route(
        self,
        queries: Sequence[str | Sequence[Message]],
        mode: str | None = None,
        allowed: Sequence[str] | None = None,
        max_experts: int | None = None,
    ) -> list[Route]:
        texts = [query if isinstance(query, str) else query[-1].content for query in queries]
        return [self._route(text, mode) for text in texts]

    def _route(self, text: str, mode: str | None) -> Route:
        named = [name for name in MARKERS if name in text]
        if not named:
            return Route({}, 0.0, True, False)
        others = {name: 0.1 for name in MARKERS if name != named[0]} if mode == "soft" else {}
        return Route({named[0]: 1 - sum(others.values()), **others}, 0.9, False, False)


def marked_router(config: EngineConfig | None = None, generation: GenerationConfig | None = None) -> Router:
    """Everything together, without a library on disk."""
    settings = BaseConfig()
    base = load_base(settings)
    library = Library(Path("none"), tuple(MARKERS), False, settings, base.digest, "plain", 64, "", {})
    engine = Engine(marked_model(base), config)
    return Router(library, engine, BySubject(), generation or GenerationConfig(max_new_tokens=12))


def others(name: str) -> list[str]:
    """The markers that an answer by `name` must not hold."""
    return [marker for owner, marker in MARKERS.items() if owner != name]


def names(count: int) -> list[str]:
    """Experts in turn."""
    return list(itertools.islice(itertools.cycle(MARKERS), count))
