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
from moe_router.gate.features import Memory
from moe_router.workspace import atomic, digest_file, read_json, write_json

FORMAT = 2
MODES = {"top1": 1, "top2": 2, "soft": None}
"""How many experts a mode keeps."""
ARRAYS = ("weight", "bias", "memory")
ROUNDING = 1e-5
"""A query alone and in a batch may differ by this much in its score; the threshold leaves that much room."""
REMEDY = "run `moe-router train-gate` again"


@dataclass(frozen=True, eq=False)
class Decisions:
    """What the gate says of a batch of queries."""

    weights: np.ndarray
    """(queries, experts) float32, rows sum to 1, or to 0 where the gate abstains."""
    confidence: np.ndarray
    """(queries,) calibrated probability that the first expert is the one with the lowest loss; 0 for a broken query."""
    abstained: np.ndarray  # (queries,) bool
    score: np.ndarray
    """(queries,) likeness to the training queries, -1 to 1; below the threshold the gate abstains."""


@dataclass(frozen=True, eq=False)
class Gate:
    """Votes of remembered training queries plus a linear map of the embedding, with their calibration."""

    names: tuple[str, ...]
    library_digest: str
    embedder: str
    mode: str
    abstain_to: str
    weight: np.ndarray  # (experts, dimension) float32
    bias: np.ndarray  # (experts,) float32
    vote_scale: float
    memory: Memory
    mixing_temperature: float
    confidence_temperature: float
    threshold: float
    embedder_digest: str = ""
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
        linear = embeddings.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        return linear + self.vote_scale * self.memory.votes(embeddings, len(self.names))

    def decide(
        self,
        embeddings: np.ndarray,
        mode: str | None = None,
        allowed: Sequence[str] | None = None,
        *,
        abstain: bool = True,
    ) -> Decisions:
        """Route queries given as embeddings (queries, dimension).

        `mode` is `top1`, `top2` or `soft` (default: the gate's own); `allowed` restricts the experts and renormalises;
        `abstain=False` routes all but queries whose embedding is not finite. Raises LibraryError for an unknown mode or
        expert, or embeddings of another dimension.
        """
        mode = self.mode if mode is None else mode
        if mode not in MODES:
            raise LibraryError(f"unknown gate mode {mode!r}: use one of {', '.join(MODES)}")
        embeddings = np.asarray(embeddings, dtype=np.float32)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dimension:
            raise LibraryError(
                f"embeddings of shape {embeddings.shape} do not fit the gate's {self.dimension} dimensions: "
                f"embed queries with {self.embedder!r}, or {REMEDY}"
            )
        finite = np.isfinite(embeddings).all(1)
        known = np.where(finite[:, None], embeddings, 0)
        logits = self._permit(self.logits(known), allowed)
        weights = keep_top(softmax(logits / self.mixing_temperature), MODES[mode])
        score = self.memory.likeness(known)
        abstained = ~finite | (abstain & (score < self.threshold))
        weights = np.where(abstained[:, None], 0, weights)
        confidence = softmax(logits / self.confidence_temperature).max(1) * finite
        return Decisions(weights.astype(np.float32), confidence, abstained, score)

    def _permit(self, logits: np.ndarray, allowed: Sequence[str] | None) -> np.ndarray:
        if allowed is None:
            return logits
        unknown = sorted(set(allowed) - set(self.names))
        if unknown or len(allowed) == 0:
            raise LibraryError(f"allowed experts {unknown or '(none)'}: choose from {', '.join(self.names)}")
        return np.where([name in allowed for name in self.names], logits, -np.inf)

    def save(self, folder: Path) -> None:
        """Write gate.safetensors, then gate.json with its checksum: a crash between the two is seen at load."""
        from safetensors.numpy import save_file

        tensors = {"weight": self.weight, "bias": self.bias}
        tensors |= {"queries": self.memory.queries.astype(np.float16), "owners": self.memory.owners.astype(np.int32)}
        with atomic(folder / WEIGHTS) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary)
        card = {"format": FORMAT, "sha256": digest_file(folder / WEIGHTS), "dimension": self.dimension}
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
            memory = Memory(tensors.pop("queries").astype(np.float32), tensors.pop("owners").astype(np.int64))
            gate = cls(**card, **tensors, memory=memory)
            gate._check(dimension)
        except (OSError, SafetensorError, WorkspaceError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise LibraryError(f"{folder / WEIGHTS} or {CARD} is missing or damaged ({error}): {REMEDY}") from error
        if library is not None and (gate.names != library.names or gate.library_digest != library.digest):
            raise LibraryError(f"the gate in {folder} belongs to other experts than are there now: {REMEDY}")
        return gate

    def _check(self, dimension: int) -> None:
        experts = len(self.names)
        queries, owners = self.memory.queries, self.memory.owners
        shapes = (self.weight.shape, self.bias.shape, queries.shape, owners.shape)
        if shapes != ((experts, dimension), (experts,), (len(owners), dimension), (len(queries),)) or not len(owners):
            raise ValueError("shapes do not fit each other")
        if owners.min() < 0 or owners.max() >= experts:
            raise ValueError("remembers queries of an expert that is not there")
        settings = [self.mixing_temperature, self.confidence_temperature, self.threshold, self.vote_scale]
        if not all(np.isfinite(values).all() for values in (self.weight, self.bias, queries, settings)):
            raise ValueError("holds NaN or infinity")
        if min(self.mixing_temperature, self.confidence_temperature) <= 0 or self.mode not in MODES:
            raise ValueError("mode or temperature out of range")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise, (rows, experts) → (rows, experts)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def keep_top(weights: np.ndarray, k: int | None) -> np.ndarray:
    """The k largest weights of each row, renormalised; all of them for None. Ties go to the first expert."""
    if k is None or k >= weights.shape[1]:
        return weights
    order = np.argsort(-weights, axis=1, kind="stable")[:, k:]
    kept = weights.copy()
    np.put_along_axis(kept, order, 0, axis=1)
    return kept / kept.sum(1, keepdims=True)
