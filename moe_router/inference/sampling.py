"""Next tokens of a whole batch, chosen on its device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moe_router.config import GenerationConfig


def choose(logits: torch.Tensor, settings: Sequence[GenerationConfig], uniform: Sequence[float]) -> torch.Tensor:
    """One token per row: greedy at temperature 0, else nucleus sampling (Holtzman et al. 2020).

    A row is sampled by inverting its cumulative distribution at its number in `uniform` (0 up to 1), so that what it
    gets depends on nothing in the batch but its own logits, settings and number.

    *Shape:* logits (rows, vocabulary) → (rows,) int64 on the same device.
    """
    greedy = logits.argmax(-1)
    drawn = [i for i, s in enumerate(settings) if s.temperature > 0]
    if not drawn:
        return greedy

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    temperature = column([settings[i].temperature for i in drawn])  # (drawn, 1)
    probabilities = torch.softmax(logits[drawn].double() / temperature, -1)  # (drawn, vocabulary)
    if any(settings[i].top_p < 1 for i in drawn):
        probabilities = nucleus(probabilities, column([settings[i].top_p for i in drawn]))
    mass = probabilities.cumsum(-1)
    target = column([uniform[i] for i in drawn]) * mass[:, -1:]
    tokens = torch.searchsorted(mass, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return greedy.index_copy(0, torch.tensor(drawn, device=logits.device), tokens)


def nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The smallest set of likeliest tokens that holds `top_p`, the others zero; tokens equal to the last of it stay too.

    *Shape:* probabilities (rows, vocabulary), top_p (rows, 1) → (rows, vocabulary).
    """
    ordered = probabilities.sort(-1, descending=True).values
    inside = (ordered.cumsum(-1) - ordered < top_p) | (top_p >= 1)
    last = inside.sum(-1, keepdim=True) - 1
    return torch.where(probabilities >= ordered.gather(-1, last), probabilities, 0)
