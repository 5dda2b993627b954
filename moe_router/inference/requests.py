"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from moe_router.config import GenerationConfig
from moe_router.errors import ConfigError

GRAIN = 1024
"""Weights are multiples of 1/GRAIN, a step finer than bfloat16 tells apart near 1."""
Mixture = tuple[int, ...]
"""Each expert's weight in units of 1/GRAIN, then 1 or 0 for the shared expert."""


@dataclass(frozen=True)
class EngineConfig:
    """How much the engine holds at once."""

    slots: int = 16
    """Rows of the running batch; further requests wait."""
    context: int = 0
    """Longest prompt with its answer, in tokens (0: what the base reads)."""
    prefill_tokens: int = 256
    """Prompt tokens read in one step, over all rows: the longest that running rows wait for a newcomer."""
    prefix_bytes: int = 64 << 20
    """Memory for the keys and values of prompts seen before (0: none kept)."""
    graphs: bool = True
    """On CUDA, replay decode steps from CUDA graphs."""
    kernels: bool = True
    """On CUDA, use the Triton kernels where they run (docs/performance.md); off: the plain ones."""

    def __post_init__(self) -> None:
        if self.slots < 1 or self.prefill_tokens < 1 or self.context < 0 or self.prefix_bytes < 0:
            raise ConfigError(f"{self}: slots and prefill_tokens are at least 1, context and prefix_bytes at least 0")


@dataclass(frozen=True, eq=False)
class Request:
    """One row of a batch: a prompt in tokens, its mixture, and how to sample."""

    tokens: Sequence[int]
    weights: np.ndarray  # (experts,)
    shared: bool = True
    settings: GenerationConfig = GenerationConfig()  # noqa: RUF009 - frozen
    stop: tuple[str, ...] = ()
    conversation: str = ""
    """Name under which keys and values are found again whatever mixture made them; empty: only under the same mixture."""

    @property
    def mixture(self) -> Mixture:
        """The weights as the engine applies them."""
        return (*np.rint(np.asarray(self.weights, dtype=np.float64) * GRAIN).astype(int).tolist(), int(self.shared))


@dataclass(frozen=True)
class Piece:
    """What one step adds to one row."""

    row: int
    text: str
    """New text that can no longer turn into a stop string; may be empty."""
    tokens: int
    """Tokens generated for the row so far."""
    finish: str = ""
    """On the row's last piece: `stop`, `length`, `error` (its logits were not finite) or `cancelled`."""


@dataclass(eq=False)
class Ticket:
    """A request on its way through the engine."""

    request: Request
    row: int
    """Its place among those it was submitted with."""
    out: SimpleQueue[Piece | BaseException] = field(repr=False)
    cancelled: bool = False
