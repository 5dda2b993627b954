"""The gate: query embedding → weights over experts, or abstain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from moe_router.errors import LibraryError, WorkspaceError
from moe_router.experts.library import GATE_CARD as CARD
from moe_router.experts.library import GATE_WEIGHTS as WEIGHTS
from moe_router.experts.library import Library
from moe_router.gate.features import NOBODY, Memory
from moe_router.gate.sight import View
from moe_router.gate.weights import MODES, bounds, is_mode, keep_top, softmax
from moe_router.workspace import atomic, digest_file, read_json, write_json

FORMAT = 3
ARRAYS = ("weight", "bias", "memory", "view")
REMEDY = "run `moe-router train-gate` again"
__all__ = ["MODES", "Decisions", "Gate", "keep_top", "softmax"]


@dataclass(frozen=True, eq=False)
class Decisions:
    """What the gate says of a batch of queries."""

    weights: np.ndarray
    """(queries, experts) float32, rows sum to 1, or to 0 where the gate abstains."""
    confidence: np.ndarray
    """(queries,) calibrated probability that the first expert is, of all, the one with the lowest loss; 0 for a broken
    query."""
    abstained: np.ndarray  # (queries,) bool
    score: np.ndarray
    """(queries,) likeness to the training queries of the experts allowed, about 0 to 1; below the threshold the gate
    abstains."""


@dataclass(frozen=True, eq=False)
class Gate:
    """Evidence of the training queries plus a linear map of the embedding, with their calibration."""

    names: tuple[str, ...]
    library_digest: str
    embedder: str
    mode: str
    abstain_to: str
    weight: np.ndarray  # (experts, dimension) float32
    bias: np.ndarray  # (experts,) float32
    evidence_scale: float
    memory: Memory
    """Of what the gate sees of a query, as `view` makes it; below called its embedding."""
    mixing_temperature: float
    confidence_temperature: float
    threshold: float
    embedder_digest: str = ""
    view: View = field(default_factory=View)
    """What of a query it sees: `moe_router.gate.sight.open_sight` gives embeddings accordingly."""
    max_experts: int = 0
    """Most experts of a query, whatever the mode (0: as many as the mode keeps)."""
    abstain_message: str = ""
    """What is said instead of an answer where `abstain_to` is `message`."""
    inputs: str = ""
    """Digest of what it was fitted on."""
    figures: dict[str, Any] = field(default_factory=dict)
    """How the settings were chosen, and validation figures."""

    @property
    def dimension(self) -> int:
        """Of the embeddings it routes."""
        return self.weight.shape[1]

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """*Shape:* embeddings (queries, dimension) → (queries, experts) float64."""
        return self._logits(embeddings, self.memory.read(embeddings, len(self.names)).evidence)

    def decide(
        self,
        embeddings: np.ndarray,
        mode: str | Sequence[str] | None = None,
        allowed: Sequence[str] | None = None,
        *,
        max_experts: int | None = None,
        abstain: bool = True,
    ) -> Decisions:
        """Route queries given as embeddings (queries, dimension).

        `mode` is `top1`, `top2`, …, or `soft`, for all or one each, and `max_experts` bounds them (default: the gate's
        own). `allowed` restricts the experts: the others' weight goes to them, and a query that only the others know is
        abstained on. `abstain=False` routes all but queries whose embedding is not finite. Raises LibraryError for an
        unknown mode or expert, or embeddings of another dimension.
        """
        embeddings = np.asarray(embeddings, dtype=np.float32)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dimension:
            raise LibraryError(
                f"embeddings of shape {embeddings.shape} do not fit the gate's {self.dimension} dimensions: "
                f"embed queries with {self.embedder!r} as `open_sight` does, or {REMEDY}"
            )
        max_experts = self.max_experts if max_experts is None else max_experts
        most = bounds(self.mode if mode is None else mode, len(embeddings), len(self.names), max_experts)
        permitted = self._permitted(allowed)
        finite = np.isfinite(embeddings).all(1)
        known = np.where(finite[:, None], embeddings, 0)
        reading = self.memory.read(known, len(self.names), permitted)
        logits = self._logits(known, reading.evidence)
        weights = keep_top(softmax(np.where(permitted, logits, -np.inf) / self.mixing_temperature), most)
        confidence = softmax(logits / self.confidence_temperature)[np.arange(len(known)), weights.argmax(1)] * finite
        abstained = ~finite | (abstain & (reading.likeness < self.threshold))
        weights = np.where(abstained[:, None], 0, weights)
        return Decisions(weights.astype(np.float32), confidence, abstained, reading.likeness)

    def _logits(self, embeddings: np.ndarray, evidence: np.ndarray) -> np.ndarray:
        return (embeddings @ self.weight.T + self.bias).astype(np.float64) + self.evidence_scale * evidence

    def _permitted(self, allowed: Sequence[str] | None) -> np.ndarray:
        """Which experts may be used: (experts,) bool."""
        if allowed is None:
            return np.ones(len(self.names), dtype=bool)
        unknown = sorted(set(allowed) - set(self.names))
        if unknown or len(allowed) == 0:
            raise LibraryError(f"allowed experts {unknown or '(none)'}: choose from {', '.join(self.names)}")
        return np.array([name in allowed for name in self.names])

    def save(self, folder: Path) -> None:
        """Write gate.safetensors, then gate.json with its checksum: a crash between the two is seen at load."""
        from safetensors.numpy import save_file

        memory = self.memory
        tensors = {"weight": self.weight, "bias": self.bias, "queries": memory.queries.astype(np.float16)}
        tensors |= {"owners": memory.owners.astype(np.int32), "pockets": memory.pockets.astype(np.int32)}
        tensors |= {"coefficients": memory.coefficients}
        if self.view.layer:
            tensors |= {"hidden_mean": self.view.mean, "hidden_main": self.view.main}
        with atomic(folder / WEIGHTS) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary)
        card = {"format": FORMAT, "sha256": digest_file(folder / WEIGHTS), "dimension": self.dimension}
        card |= {"features": self.view.features, "hidden_layer": self.view.layer}
        write_json(folder / CARD, card | {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ARRAYS})

    @classmethod
    def load(cls, folder: Path, library: Library | None = None) -> Gate:
        """Read a gate. Raises LibraryError when it is missing, damaged, not finite, or of another library."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if not (folder / CARD).exists():
            raise LibraryError(f"{folder} has no gate: run `moe-router train-gate` first")
        try:
            card = read_json(folder / CARD)
            if card.pop("format") != FORMAT:
                raise LibraryError(f"{folder / CARD} has another format: {REMEDY}")
            if card.pop("sha256") != digest_file(folder / WEIGHTS):
                raise LibraryError(f"{folder / WEIGHTS} does not match the checksum in {CARD}: {REMEDY}")
            dimension = card.pop("dimension")
            card["names"] = tuple(card["names"])
            tensors = load_file(folder / WEIGHTS)
            memory = Memory(
                tensors.pop("queries").astype(np.float32),
                tensors.pop("owners").astype(np.int64),
                tensors.pop("coefficients").astype(np.float32),
                tensors.pop("pockets").astype(np.int64),
            )
            hidden = (tensors.pop("hidden_mean"), tensors.pop("hidden_main")) if "hidden_mean" in tensors else ()
            view = View(card.pop("features", "embedding"), card.pop("hidden_layer", 0), *hidden)
            gate = cls(**card, **tensors, memory=memory, view=view)
            gate._check(dimension)
        except (OSError, SafetensorError, WorkspaceError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise LibraryError(f"{folder / WEIGHTS} or {CARD} is missing or damaged ({error}): {REMEDY}") from error
        if library is not None and (gate.names != library.names or gate.library_digest != library.digest):
            raise LibraryError(f"the gate in {folder} belongs to other experts than are there now: {REMEDY}")
        return gate

    def _check(self, dimension: int) -> None:
        experts, memory = len(self.names), self.memory
        remembered, pockets = len(memory.owners), len(memory.pockets)
        found = (self.weight.shape, self.bias.shape, memory.queries.shape, memory.coefficients.shape)
        if found != ((experts, dimension), (experts,), (remembered, dimension), (remembered, pockets)) or not pockets:
            raise ValueError("shapes do not fit each other")
        self.view.check(dimension)
        if memory.owners.min() < NOBODY or memory.pockets.min() < 0:
            raise ValueError("remembers queries of an expert that is not there")
        if max(memory.owners.max(), memory.pockets.max()) >= experts:
            raise ValueError("remembers queries of an expert that is not there")
        settings = [self.mixing_temperature, self.confidence_temperature, self.threshold, self.evidence_scale]
        arrays = (self.weight, self.bias, memory.queries, memory.coefficients, settings)
        if not all(np.isfinite(values).all() for values in arrays):
            raise ValueError("holds NaN or infinity")
        if min(self.mixing_temperature, self.confidence_temperature) <= 0 or not is_mode(self.mode):
            raise ValueError("mode or temperature out of range")
