"""Prototypes read off the adapters themselves: Arrow (Ostapenko et al. 2024, arXiv:2405.11157).

An expert's prototype in a layer is the direction of input that its update B·A moves most, its first right singular vector; a
token belongs to the expert whose prototype it is most parallel to, whatever the sign. Arrow routes every token in every
layer. Here a query takes one route, so the scores are averaged over the prompt's tokens and over all layers, on the hidden
states of the base alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from moe_router.data.records import Record
from moe_router.experts.adapters import RoutedModel
from moe_router.experts.encode import encode_prompt

LONGEST = 256
"""Last tokens of a prompt that are read."""


def prototypes(model: RoutedModel, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The experts' prototypes in every adapted layer: (experts, inputs), unit length, by the layer's path."""
    factors = [model.factors(name) for name in names]
    return {path: torch.stack([_first_direction(*each[path]) for each in factors]) for path in factors[0]}


@torch.no_grad()
def affinities(model: RoutedModel, names: Sequence[str], records: Sequence[Record], template: str) -> np.ndarray:
    """Mean |x·prototype| over a prompt's tokens and layers, in standard deviations over the experts.

    *Shape:* → (records, experts) float32.
    """
    found = prototypes(model, names)
    sums = torch.zeros(len(names), dtype=torch.float32, device=model.base.device)

    def reader(directions: torch.Tensor):
        def read(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = torch.nn.functional.normalize(inputs[0][0].float(), dim=-1)  # (tokens, inputs)
            sums.add_((x @ directions.T).abs().mean(0))

        return read

    hooks = [model.base.model.get_submodule(path).register_forward_pre_hook(reader(each)) for path, each in found.items()]
    rows, nothing = [], np.zeros((1, len(names)), dtype=np.float32)
    try:
        for record in records:
            tokens = encode_prompt(record.messages, model.base, template)[-LONGEST:]
            sums.zero_()
            with model.routed(model.route(nothing, np.zeros(1, dtype=np.float32))):
                model.base.model(input_ids=torch.tensor([tokens], device=model.base.device), use_cache=False)
            rows.append((sums / len(found)).cpu().numpy())
    finally:
        for hook in hooks:
            hook.remove()
    scores = np.stack(rows)
    return (scores - scores.mean(1, keepdims=True)) / max(float(scores.std()), 1e-9)


def _first_direction(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """First right singular vector of the update, from its factors.

    *Shape:* a (rank, inputs), b (rank, outputs) → (inputs,).
    """
    basis, rest = torch.linalg.qr(a.detach().float().T)  # (inputs, rank), (rank, rank)
    _, _, directions = torch.linalg.svd(b.detach().float().T @ rest.T, full_matrices=False)
    return basis @ directions[0]
