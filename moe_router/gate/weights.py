"""From logits to weights over experts: softmax, and how many of them a mode keeps."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from moe_router.errors import LibraryError

MODES = {"top1": 1, "top2": 2, "soft": None}
"""How many experts the usual modes keep; `top` and any other number works as well."""


def softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise, (rows, experts) → (rows, experts)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def keep_top(weights: np.ndarray, k: int | np.ndarray | None) -> np.ndarray:
    """The k largest weights of each row, renormalised; all of them for None. Ties go to the first expert.

    *Shape:* weights (rows, experts); k may differ by row: (rows,).
    """
    experts = weights.shape[1]
    most = np.broadcast_to(experts if k is None else k, len(weights))
    if (most >= experts).all():
        return weights
    place = np.argsort(np.argsort(-weights, axis=1, kind="stable"), axis=1)
    kept = np.where(place < most[:, None], weights, 0)
    return kept / kept.sum(1, keepdims=True)


def is_mode(text: str) -> bool:
    """Whether it is `top1`, `top2`, …, `top99` or `soft`."""
    return re.fullmatch(r"top[1-9]\d?|soft", text) is not None


def most_experts(mode: str, experts: int) -> int:
    """How many of `experts` a mode keeps. Raises LibraryError for a mode that is none of `top1`, `top2`, …, `soft`."""
    if not is_mode(mode):
        raise LibraryError(f"unknown gate mode {mode!r}: use top1, top2, another number, or soft")
    return experts if mode == "soft" else min(int(mode.removeprefix("top")), experts)


def bounds(mode: str | Sequence[str], queries: int, experts: int, max_experts: int = 0) -> np.ndarray:
    """Most experts of each query: (queries,). One mode for all or one each; `max_experts` above 0 bounds them all."""
    modes = [mode] * queries if isinstance(mode, str) else list(mode)
    if len(modes) != queries:
        raise LibraryError(f"{len(modes)} modes for {queries} queries: give one for all, or one each")
    if max_experts < 0:
        raise LibraryError(f"max_experts = {max_experts}: at least 1, or 0 for as many as the mode keeps")
    kept = {name: most_experts(name, experts) for name in set(modes)}
    return np.minimum([kept[name] for name in modes], max_experts if max_experts else experts).astype(np.int64)
