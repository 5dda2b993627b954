"""Batches drawn from packed sources: a function of the seed and the step alone, so that a resumed run sees the same ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

END = 0
"""Token that begins and ends every document."""
PER_ROW = 24
"""Documents of a row that are told apart at most, on average over a batch."""


class Sources:
    """The packed sources of a recipe, and the share of each at a point of the run."""

    def __init__(self, folder: Path, weights: dict[str, float], end: dict[str, float]):
        self.tokens = [np.memmap(folder / f"{name}.bin", dtype=np.uint16, mode="r") for name in weights]
        self.stable = _shares(weights)
        self.end = _shares({name: end[name] for name in weights})

    def rows(self, seed: int, step: int, rows: int, context: int, decaying: float) -> np.ndarray:
        """(rows, context + 1) tokens from random places; `decaying` (0 to 1) moves from the stable shares to the end's."""
        draw = np.random.default_rng((seed, step))
        shares = (1 - decaying) * self.stable + decaying * self.end
        chosen = draw.choice(len(self.tokens), size=rows, p=shares)
        starts = draw.random(rows)
        out = np.empty((rows, context + 1), dtype=np.int64)
        for i, (source, start) in enumerate(zip(chosen, starts, strict=True)):
            tokens = self.tokens[source]
            at = int(start * (len(tokens) - context - 1))
            out[i] = tokens[at : at + context + 1]
        return out


def boundaries(inputs: np.ndarray) -> np.ndarray:
    """(rows × PER_ROW + 1,) int32: where documents begin in the flattened rows, every row beginning one; the rest repeats
    the end. Documents beyond the room run on into their neighbours."""
    rows, context = inputs.shape
    begins = inputs.reshape(-1) == END
    begins[::context] = False
    inner = np.flatnonzero(begins)[: rows * (PER_ROW - 1)]
    starts = np.sort(np.concatenate([np.arange(0, rows * context, context), inner]))
    out = np.full(rows * PER_ROW + 1, rows * context, dtype=np.int32)
    out[: len(starts)] = starts
    return out


def batches(sources: Sources, seed: int, steps: range, rows: int, context: int, decay_from: int, total: int) -> Iterator[tuple]:
    """(step, tokens (rows, context + 1), boundaries) of each step, made one thread ahead."""
    made: queue.Queue = queue.Queue(maxsize=8)

    def fill() -> None:
        for step in steps:
            decaying = max(0.0, (step - decay_from) / max(total - decay_from, 1))
            tokens = sources.rows(seed, step, rows, context, min(1.0, 4 * decaying))
            made.put((step, _pinned(tokens), _pinned(boundaries(tokens[:, :-1]))))
        made.put(None)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := made.get()) is not None:
        yield batch


def _pinned(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def _shares(weights: dict[str, float]) -> np.ndarray:
    values = np.array(list(weights.values()), dtype=float)
    return values / values.sum()
