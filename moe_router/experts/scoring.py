"""How well a mixture predicts responses: nats per record, the raw material of gate and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from moe_router.data.records import Record
from moe_router.experts.adapters import Mixing, RoutedModel
from moe_router.experts.encode import IGNORE, Batch, Example, collate, encode
from moe_router.experts.nats import token_nats

BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Scores:
    """Response-token loss of each record."""

    nats: np.ndarray
    """Summed negative log-likelihood: (records,), or (records, experts) from `expert_scores`."""
    tokens: np.ndarray  # (records,)

    @property
    def perplexity(self) -> float | np.ndarray:
        return np.exp(self.nats.sum(0) / self.tokens.sum())


def target_logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Logits at the positions that have a label only, in the base's type: (targets, vocabulary).

    The positions are picked before the output head, whose product over the whole row would be mostly thrown away.
    """
    mask = batch.labels != IGNORE
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][mask], *inputs[1:]))
    try:
        return model(input_ids=batch.tokens, position_ids=batch.positions, use_cache=False).logits
    finally:
        hook.remove()


def score(
    model: RoutedModel,
    records: Sequence[Record],
    weights: np.ndarray,
    shared: np.ndarray | None = None,
    *,
    template: str = "plain",
    max_tokens: int = 0,
) -> Scores:
    """Loss of each record under its own mixture.

    *Shape:* weights (records, experts), zero where an expert is not used; shared (records,) of 0 or 1, default 1.
    """
    return score_examples(model, encode(records, model.base, template, max_tokens), weights, shared)


def expert_scores(
    model: RoutedModel, records: Sequence[Record], *, template: str = "plain", max_tokens: int = 0, progress: object = None
) -> Scores:
    """Loss of each record under every expert alone (with the shared one): nats (records, experts)."""
    examples = encode(records, model.base, template, max_tokens)
    every = np.eye(len(model.expert_ranks), dtype=np.float32)
    columns = []
    for row in every:
        columns.append(score_examples(model, examples, np.tile(row, (len(examples), 1))))
        if progress is not None:
            progress.advance(1)
    return Scores(np.stack([c.nats for c in columns], 1), columns[0].tokens)


def score_examples(
    model: RoutedModel, examples: Sequence[Example], weights: np.ndarray, shared: np.ndarray | None = None
) -> Scores:
    """`score` on encoded records."""
    weights = np.asarray(weights, dtype=np.float32)
    always = np.ones(len(examples), dtype=np.float32) if shared is None else np.asarray(shared, dtype=np.float32)
    return score_routed(model, examples, lambda chosen: model.route(weights[chosen], always[chosen]))


@torch.no_grad()
def score_routed(model: RoutedModel, examples: Sequence[Example], route: Callable[[Sequence[int]], Mixing | None]) -> Scores:
    """Loss of each record under what `route` gives for the records of a batch, by index.

    Batches hold records of similar length, so little is padding.
    """
    nats = np.zeros(len(examples))
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    for chosen in _batches(order, examples):
        batch = collate([[examples[i]] for i in chosen], model.base.eos, model.base.device)
        mask = batch.labels != IGNORE
        with model.routed(route(chosen)):
            losses = token_nats(target_logits(model.base.model, batch), batch.labels[mask])
        sums = torch.zeros(len(chosen), dtype=torch.float64, device=losses.device)
        sums.index_add_(0, batch.owner[mask], losses.double())
        nats[chosen] = sums.cpu().numpy()
    return Scores(nats, np.array([e.target_tokens for e in examples], dtype=np.int64))


def _batches(order: Sequence[int], examples: Sequence[Example]) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    for index in order:
        if batches[-1] and len(examples[index].tokens) * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return [batch for batch in batches if batch]
