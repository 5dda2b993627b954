"""The token generator: every consumer, from `ask` to the command line, reads its tokens from `Engine.generate`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from moe_router.config import GenerationConfig
from moe_router.experts.adapters import RoutedModel, SlotRoute


@dataclass(frozen=True)
class Request:
    """One row of a batch: a prompt in tokens, its mixture, and how to sample."""

    tokens: Sequence[int]
    weights: np.ndarray  # (experts,)
    shared: bool = True
    settings: GenerationConfig = GenerationConfig()  # noqa: RUF009 - frozen
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one step adds to one row."""

    row: int
    text: str
    """New text that can no longer turn into a stop string; may be empty."""
    tokens: int
    """Tokens generated for the row so far."""
    finish: str = ""
    """`stop`, `length`, or `error` (the row's logits were not finite), on the row's last piece."""


class Engine:
    """Generates for a batch, each row with a mixture of its own. Safe to use from several threads."""

    def __init__(self, model: RoutedModel) -> None:
        self.model = model
        self.base = model.base
        self._lock = threading.Lock()

    def generate(self, requests: Sequence[Request]) -> Iterator[Piece]:
        """Yield pieces of text as rows grow; rows that finish leave the batch."""
        rows = [_Row(index, request, self.base) for index, request in enumerate(requests)]
        if not rows:
            return
        tokens, mask = self._pad(rows)
        cache = None
        while rows:
            logits, cache = self._forward(rows, tokens, mask, cache)
            pieces = [row.take(scores) for row, scores in zip(rows, logits, strict=True)]
            yield from pieces
            alive = [i for i, piece in enumerate(pieces) if not piece.finish]
            if len(alive) < len(rows):
                rows = [rows[i] for i in alive]
                if not rows:
                    return
                index = torch.tensor(alive, device=mask.device)
                cache.batch_select_indices(index)
                mask = mask[index]
            tokens = torch.tensor([[row.generated[-1]] for row in rows], device=mask.device)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)

    def _pad(self, rows: Sequence[_Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts padded on the left: tokens and mask, (rows, seq) each."""
        width = max(len(row.prompt) for row in rows)
        tokens = torch.full((len(rows), width), self.base.eos)
        mask = torch.zeros(len(rows), width, dtype=torch.int64)
        for i, row in enumerate(rows):
            tokens[i, width - len(row.prompt) :] = torch.tensor(row.prompt)
            mask[i, width - len(row.prompt) :] = 1
        return tokens.to(self.base.device), mask.to(self.base.device)

    @torch.inference_mode()
    def _forward(
        self, rows: Sequence[_Row], tokens: torch.Tensor, mask: torch.Tensor, cache: object
    ) -> tuple[torch.Tensor, object]:
        """Next-token logits in fp32 on the CPU, (rows, vocabulary), and the grown cache."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        with self._lock, self.model.routed(self._route(rows)):
            out = self.base.model(
                input_ids=tokens,
                attention_mask=None if bool(mask.all()) else mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return out.logits[:, -1].float().cpu(), out.past_key_values

    def _route(self, rows: Sequence[_Row]) -> SlotRoute | None:
        weights = np.stack([row.request.weights for row in rows])
        return self.model.route(weights, np.array([float(row.request.shared) for row in rows]))


class _Row:
    """A row's state: what it has generated, what it has shown, and its own random stream."""

    def __init__(self, index: int, request: Request, base: object) -> None:
        self.index, self.request = index, request
        self.tokenizer, self.eos = base.tokenizer, base.eos
        room = max(1, base.context - request.settings.max_new_tokens)
        self.prompt = list(request.tokens)[-room:] or [base.eos]
        self.longest = max(1, min(request.settings.max_new_tokens, base.context - len(self.prompt)))
        self.random = torch.Generator().manual_seed(request.settings.seed)
        self.generated: list[int] = []
        self.shown = ""

    def take(self, logits: torch.Tensor) -> Piece:
        """Choose the next token from logits (vocabulary,)."""
        if not logits.isfinite().all():
            return Piece(self.index, "", len(self.generated), "error")
        token = sample(logits, self.request.settings, self.random)
        if token == self.eos:
            return self._piece(self._text(), "stop")
        self.generated.append(token)
        text = self._text()
        at = min((text.find(stop) for stop in self.request.stop if stop in text), default=-1)
        if at >= 0:
            return self._piece(text[:at], "stop")
        if len(self.generated) >= self.longest:
            return self._piece(text, "length")
        return self._piece(text[: len(text) - _held(text, self.request.stop)])

    def _text(self) -> str:
        return self.tokenizer.decode(self.generated).lstrip()

    def _piece(self, text: str, finish: str = "") -> Piece:
        if finish:
            text = text.rstrip()
        new, self.shown = text[len(self.shown) :], text if len(text) > len(self.shown) else self.shown
        return Piece(self.index, new, len(self.generated), finish)


def _held(text: str, stops: Sequence[str]) -> int:
    """How many last characters must wait: trailing space, half a character, or the start of a stop string."""
    waiting = len(text) - len(text.rstrip().rstrip("\ufffd").rstrip())
    for stop in stops:
        for size in range(min(len(stop), len(text)), waiting, -1):
            if text.endswith(stop[:size]):
                waiting = size
                break
    return waiting


def sample(logits: torch.Tensor, settings: GenerationConfig, random: torch.Generator) -> int:
    """Next token: greedy at temperature 0, else nucleus sampling (Holtzman et al. 2020).

    *Shape:* logits (vocabulary,).
    """
    if settings.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.double() / settings.temperature, 0)
    ordered, order = probabilities.sort(descending=True, stable=True)
    ordered[ordered.cumsum(0) - ordered >= settings.top_p] = 0
    return int(order[torch.multinomial(ordered, 1, generator=random)])
