"""Decode steps replayed from CUDA graphs: at one token a row, launching the kernels costs more than running them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from moe_router.inference.forward import EagerForward
from moe_router.inference.mixing import Mix, Plan
from moe_router.inference.requests import Mixture

SHORTEST = 128
"""Places that the smallest graph reads; each larger one reads twice as many."""
WARM_UP = 2
"""Passes before a capture, in which libraries choose their kernels."""

Step = Callable[[], torch.Tensor]
log = logging.getLogger(__name__)


class GraphForward:
    """Forward that captures a decode step once for every bucket of rows, places and form of the adapters.

    Tokens, places and mixtures are copied into the captured step's inputs, so that one graph serves every route. Whatever
    is no decode step goes to the eager forward, and so does everything once a capture has failed (`failure` says why).
    """

    def __init__(self, eager: EagerForward, capture: Callable[[Step], Step] | None = None) -> None:
        """`capture` makes a step into its replay; by default a CUDA graph."""
        self.eager = eager
        self.failure = ""
        self._capture = capture or CudaCapture()
        self._captured: dict[tuple[int, int, tuple[str, int] | None], _Decode] = {}

    def __len__(self) -> int:
        """Graphs captured so far."""
        return len(self._captured)

    def __call__(
        self, chunks: Sequence[Sequence[int]], starts: Sequence[int], first: int, mixtures: Sequence[Mixture]
    ) -> torch.Tensor:
        """As Forward says."""
        if first or self.failure or max(map(len, chunks)) > 1:
            return self.eager(chunks, starts, first, mixtures)
        eager, cache = self.eager, self.eager.cache
        rows = min(power(len(chunks)), cache.slots)
        width = min(power(max(starts) + 1, SHORTEST), cache.tokens)
        mixed = eager.plan(tuple(mixtures), True)
        key = (rows, width, mixed.key if mixed else None)
        idle = rows - len(chunks)  # they write to the cache's dump place
        inputs = torch.tensor(
            [[*(chunk[0] for chunk in chunks), *[eager.model.base.eos] * idle], [*starts, *[cache.tokens] * idle]]
        )
        try:
            if key not in self._captured:
                self._captured[key] = _Decode(eager, width, inputs, mixed, self._capture)
            logits = self._captured[key](inputs, mixed)
        except RuntimeError as error:
            self.failure = str(error).strip().splitlines()[0]
            log.warning("decode steps run without CUDA graphs: %s", self.failure)
            self._captured.clear()
            return eager(chunks, starts, first, mixtures)
        return logits[: len(chunks)].float()

    def refresh(self) -> None:
        """As EagerForward says."""
        self.eager.refresh()


class _Decode:
    """One captured step and the tensors that it reads."""

    def __init__(
        self, eager: EagerForward, width: int, inputs: torch.Tensor, plan: Plan | None, capture: Callable[[Step], Step]
    ) -> None:
        """Rows that look at the first `width` places; `inputs` and `plan` as in a call."""
        self.inputs = inputs.to(eager.cache.kv.device, copy=True)
        self.plan, self.mix = plan, Mix(eager.groups, plan, inputs.shape[1]) if plan else None
        self.replay = capture(lambda: eager.step(self.inputs, 0, width, self.mix))

    def __call__(self, inputs: torch.Tensor, plan: Plan | None) -> torch.Tensor:
        """*Shape:* inputs (2, rows) → logits (rows, vocabulary), overwritten by the next replay."""
        self.inputs.copy_(inputs)
        if self.mix is not None and plan is not None and plan is not self.plan:
            self.mix.load(plan)
            self.plan = plan
        return self.replay()


class CudaCapture:
    """Captures steps into CUDA graphs that share one memory pool, since no two run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """A function that replays `step` on whatever its inputs then hold. Raises RuntimeError when it cannot be captured."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = step()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


def power(length: int, least: int = 1) -> int:
    """Up to the next power of two, at least `least`."""
    return max(least, 1 << (length - 1).bit_length())
