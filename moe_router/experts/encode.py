"""Records as tokens, and tokens packed into rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from moe_router.data.records import Message, Record
from moe_router.data.templates import template
from moe_router.experts.base import Base

IGNORE = -100
"""Label of a token without loss."""


@dataclass(frozen=True)
class Example:
    """One record in tokens; loss and perplexity count only the response and its end-of-text token."""

    tokens: tuple[int, ...]
    prompt_tokens: int
    """How many of `tokens` come before the response."""

    @property
    def target_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens


@dataclass(frozen=True)
class Batch:
    """Rows of packed examples, padded on the right. Positions restart at each example."""

    tokens: torch.Tensor  # (rows, seq) int64
    positions: torch.Tensor  # (rows, seq) int64
    labels: torch.Tensor  # (rows, seq) int64, the next token where it is a target, else IGNORE
    owner: torch.Tensor  # (rows, seq) int64, index of the example within the batch


def encode(records: Sequence[Record], base: Base, template_name: str, max_tokens: int = 0) -> list[Example]:
    """Tokenise records with a template, after the beginning-of-text token where the base's tokenizer puts one.

    A record longer than `max_tokens` (0: the base's context) loses the start of its prompt first, keeping half the
    room for the response, then the end of its response.
    """
    style = template(template_name, base.tokenizer)
    limit = min(max_tokens or base.context, base.context)
    prompts = _tokens([style.prompt(r.messages) for r in records], base)
    responses = _tokens([style.response(r.response) for r in records], base)
    examples = []
    for prompt, response in zip(prompts, responses, strict=True):
        target = [*response, base.eos]
        room = max(limit - len(target), limit // 2) - len(base.opening)
        kept = [*base.opening, *prompt[-room:]]
        examples.append(Example((*kept, *target[: limit - len(kept)]), len(kept)))
    return examples


def encode_prompt(messages: Sequence[Message], base: Base, template_name: str) -> list[int]:
    """A conversation in tokens, ready for the answer to follow."""
    return [*base.opening, *_tokens([template(template_name, base.tokenizer).prompt(messages)], base)[0]]


def _tokens(texts: list[str], base: Base) -> list[list[int]]:
    return base.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def pack(lengths: Sequence[int], order: Sequence[int], row_tokens: int) -> list[tuple[int, ...]]:
    """Put examples into rows of at most `row_tokens` tokens, in order; a longer example gets a row of its own."""
    rows: list[tuple[int, ...]] = []
    row: list[int] = []
    used = 0
    for index in order:
        if row and used + lengths[index] > row_tokens:
            rows.append(tuple(row))
            row, used = [], 0
        row.append(index)
        used += lengths[index]
    return [*rows, tuple(row)] if row else rows


def collate(rows: Sequence[Sequence[Example]], pad: int, device: torch.device) -> Batch:
    """Packed rows as tensors."""
    width = max(sum(len(e.tokens) for e in row) for row in rows)
    tokens = np.full((len(rows), width), pad, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    labels = np.full((len(rows), width), IGNORE, dtype=np.int64)
    owner = np.zeros((len(rows), width), dtype=np.int64)
    count = 0
    for i, row in enumerate(rows):
        at = 0
        for example in row:
            end = at + len(example.tokens)
            tokens[i, at:end] = example.tokens
            positions[i, at:end] = np.arange(end - at)
            labels[i, at + example.prompt_tokens - 1 : end - 1] = example.tokens[example.prompt_tokens :]
            owner[i, at:end] = count
            count += 1
            at = end
        positions[i, at:] = np.arange(width - at)  # padding is a sequence of its own
    return Batch(*(torch.from_numpy(array).to(device) for array in (tokens, positions, labels, owner)))


def stream(*parts: object) -> np.random.Generator:
    """A random stream that depends only on its name, so that no expert's draws move another's."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
