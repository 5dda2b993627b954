"""Whether new traffic still resembles what the gate was fitted for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_router.errors import InputError, LibraryError
from moe_router.experts.library import Library
from moe_router.gate.gate import REMEDY, Gate
from moe_router.gate.sight import open_sight
from moe_router.workspace import Workspace

BINS = 5
CHANGED = 0.25
"""Population stability above this, beyond chance, is usually called a large change, above 0.1 a small one."""


@dataclass(frozen=True)
class Drift:
    """New traffic against the tune split's queries."""

    queries: int
    stability: float
    """Population stability index of the likeness over fifths of the tune split's: 0 is equal."""
    by_chance: float
    """What as many queries of unchanged traffic come to on average."""
    abstained: float
    """Share of the new queries that the gate abstains on."""
    abstained_before: float
    usage: float
    """Share of the queries whose first expert would have to change for the experts' use to be as before, 0 to 1."""
    first: Mapping[str, float]
    """Share of each expert among the first choices now."""

    @property
    def changed(self) -> bool:
        """Whether the likeness has moved far beyond chance."""
        return self.stability - self.by_chance > CHANGED

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"changed": self.changed}

    def lines(self) -> list[str]:
        """For a terminal."""
        told = "the traffic has changed: prepare and train on newer records" if self.changed else "no large change"
        return [
            f"{self.queries:,} queries: {told}",
            f"likeness: stability index {self.stability:.2f} ({self.by_chance:.2f} by chance)",
            f"abstained: {self.abstained:.1%} (before {self.abstained_before:.1%})",
            f"experts' use moved by {self.usage:.0%}: "
            + " · ".join(f"{name} {share:.0%}" for name, share in self.first.items()),
        ]


def reference(gate: Gate, embeddings: np.ndarray) -> dict[str, Any]:
    """What `drift` compares with, of queries the gate was tuned on (queries, dimension)."""
    decided = gate.decide(embeddings, "top1", abstain=False)
    return {
        "queries": len(embeddings),
        "bounds": np.quantile(decided.score, np.arange(1, BINS) / BINS).tolist(),
        "abstained": float((decided.score < gate.threshold).mean()),
        "first": _shares(gate, decided.weights),
    }


def drift(gate: Gate, embeddings: np.ndarray) -> Drift:
    """Compare new queries (queries, dimension) with those the gate was tuned on.

    Raises LibraryError for a gate that does not know those.
    """
    before = gate.figures.get("traffic")
    if not before:
        raise LibraryError(f"the gate does not say what traffic it was fitted for: {REMEDY}")
    decided = gate.decide(embeddings, "top1", abstain=False)
    count = len(embeddings)
    found = np.bincount(np.searchsorted(before["bounds"], decided.score), minlength=BINS) / count
    now, then = np.maximum(found, 0.5 / count), np.full(BINS, 1 / BINS)  # an empty bin counts as half a query
    first = _shares(gate, decided.weights)
    return Drift(
        queries=count,
        stability=float(((now - then) * np.log(now / then)).sum()),
        by_chance=(BINS - 1) * (1 / count + 1 / before["queries"]),
        abstained=float((decided.score < gate.threshold).mean()),
        abstained_before=before["abstained"],
        usage=sum(abs(first[name] - before["first"].get(name, 0.0)) for name in first) / 2,
        first=first,
    )


def drift_of_file(workspace: Workspace, file: Path) -> Drift:
    """The drift of the questions in a file: one a line, or JSON lines with a `text` each. Raises InputError."""
    library = Library.load(workspace.experts)
    gate, texts = Gate.load(workspace.experts, library), questions(file)
    return drift(gate, open_sight(gate, library).encode(texts))


def questions(file: Path) -> Sequence[str]:
    """The questions of a file. Raises InputError when it cannot be read or holds none."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as UTF-8 text ({error}): give one question a line") from error
    if not lines:
        raise InputError(f"{file} holds no questions: give one a line")
    if not lines[0].lstrip().startswith("{"):
        return lines
    try:
        return [json.loads(line)["text"] for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is neither text nor JSON lines with a `text` each ({error})") from error


def _shares(gate: Gate, weights: np.ndarray) -> dict[str, float]:
    counts = np.bincount(weights.argmax(1), minlength=len(gate.names)) / max(1, len(weights))
    return {name: float(share) for name, share in zip(gate.names, counts, strict=True)}
