"""Why a query goes where it goes: every expert's weight, the score against the threshold, and the nearest training records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moe_router.data.embed import Embedder, load_embedder
from moe_router.data.records import load_records
from moe_router.data.slices import Slices
from moe_router.errors import WorkspaceError
from moe_router.gate.gate import Gate
from moe_router.workspace import Workspace

NEAREST = 3
"""Training records shown of each query."""


@dataclass(frozen=True)
class Neighbour:
    """A training record like the query."""

    prompt: str
    slice: str
    similarity: float
    """Cosine of the two embeddings."""


@dataclass(frozen=True)
class Explanation:
    """What the gate saw in one query."""

    weights: Mapping[str, float]
    """Every expert allowed, largest first, as the soft mode mixes them, also where the gate abstains."""
    score: float
    """Likeness to the training queries of the experts allowed, about 0 to 1."""
    threshold: float
    """Below it the gate abstains."""
    nearest: tuple[Neighbour, ...]
    """Nearest first; empty where the workspace's records are not at hand."""

    def lines(self) -> list[str]:
        """For a terminal."""
        side = "below" if self.score < self.threshold else "at or above"
        mixture = " · ".join(f"{name} {weight:.2f}" for name, weight in self.weights.items() if weight >= 0.005)
        found = [f"all weights: {mixture}", f"likeness {self.score:.2f}, {side} the abstain threshold {self.threshold:.2f}"]
        return found + [f"near {n.similarity:.2f} {n.slice}: {' '.join(n.prompt.split())}" for n in self.nearest]


def explain(
    gate: Gate, sight: Embedder, texts: Sequence[str], workspace: Workspace, allowed: Sequence[str] | None = None
) -> list[Explanation]:
    """One explanation for each query, given as `query_text` gives it; `sight` is what the gate sees by."""
    seen = sight.encode(texts)
    decided = gate.decide(seen, "soft", allowed, max_experts=0, abstain=False)
    embeddings = seen if gate.view.features == "embedding" else load_embedder(gate.embedder).encode(texts)
    nearest = _nearest(embeddings, workspace)
    found = []
    for weights, score, near in zip(decided.weights, decided.score, nearest, strict=True):
        order = [i for i in np.argsort(-weights, kind="stable") if weights[i] > 0]
        found.append(Explanation({gate.names[i]: float(weights[i]) for i in order}, float(score), gate.threshold, near))
    return found


def _nearest(embeddings: np.ndarray, workspace: Workspace) -> list[tuple[Neighbour, ...]]:
    try:
        slices, records = Slices.load(workspace), load_records(workspace.records)
    except WorkspaceError:  # a library on its own: there are no records to show
        return [()] * len(embeddings)
    train = np.array([i for i, record in enumerate(records) if record.split == "train"])
    similarity = embeddings @ slices.embeddings[train].T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :NEAREST]
    return [
        tuple(Neighbour(records[train[i]].prompt, slices.names[slices.labels[train[i]]], float(row[i])) for i in chosen)
        for row, chosen in zip(similarity, order, strict=True)
    ]
