"""The number of slices by what it gains: adapters trained on a sample for each k, compared on records they never saw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from moe_router.config import TRIED_K, SliceConfig
from moe_router.data.cells import Cells, field_values, make_cells
from moe_router.data.records import Record
from moe_router.errors import InputError
from moe_router.progress import Progress

RESAMPLES = 1000
PATIENCE = 3
"""Numbers of slices in a row that gain nothing before no larger ones are tried."""
FEWEST_HELD = 20
"""Fewer held-out records than this decide nothing."""


@dataclass(frozen=True)
class Tried:
    """What one number of slices came to."""

    k: int
    perplexity: float
    """Of the response tokens of the held-out sample, every record answered by the adapter of its own slice."""
    gain: float
    """1 − perplexity / that of one slice."""
    error: float
    """Standard error of that gain, by bootstrap over records."""
    chosen: bool = False


class Probe(Protocol):
    """Trains small adapters and says how well they answer."""

    def nats(
        self, train: Sequence[Record], labels: np.ndarray, held: Sequence[Record], held_labels: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Summed negative log-likelihood and number of response tokens of each held-out record, by its slice's adapter.

        *Shape:* labels (train,), held_labels (held,), both below k → (held,) twice.
        """


def choose_k(
    records: Sequence[Record],
    embeddings: np.ndarray,
    responses: np.ndarray,
    settings: SliceConfig,
    probe: Probe,
    progress: Progress,
) -> tuple[SliceConfig, tuple[Tried, ...]]:
    """The settings with `k` set, and what every k that was tried gained.

    Each k is clustered on all data; a sample of the training split trains as many adapters as there are slices, and the
    tune split judges. Taken is the smallest k within one standard error of the best (Breiman et al. 1984), for a slice
    more must earn its place. On a sample every adapter sees less than it would of all data, so that large k are
    underrated rather than overrated.
    *Shape:* embeddings (records, dimension), responses (training records, dimension).
    Raises InputError where the tune split is too small to tell.
    """
    at = {split: np.array([i for i, r in enumerate(records) if r.split == split], np.int64) for split in ("train", "tune")}
    if len(at["tune"]) < FEWEST_HELD:
        raise InputError(f"{len(at['tune'])} tune records are too few to choose slice.k on: set slice.k, or add data")
    draw = np.random.default_rng(settings.seed)
    train = np.sort(draw.permutation(len(at["train"]))[: settings.probe_records])
    held = np.sort(draw.permutation(at["tune"])[: settings.probe_records // 3])
    sample, judged = [records[at["train"][i]] for i in train], [records[i] for i in held]
    values = field_values(judged, settings.by)
    tried: dict[int, np.ndarray] = {}
    tokens = np.ones(0)
    for k, cells, labels in _partitions(records, embeddings, responses, settings):
        if not tried:
            progress.stage("choose k", len(TRIED_K))
        tried[k], tokens = probe.nats(sample, labels[train], judged, cells.assign(embeddings[held], values), len(cells))
        progress.advance(1, f"k = {k}: perplexity {np.exp(tried[k].sum() / tokens.sum()):.2f}")
        if _stalled(tried):
            break
    curve = _curve(tried, tokens, settings.seed)
    return replace(settings, k=next(point.k for point in curve if point.chosen)), curve


def _partitions(
    records: Sequence[Record], embeddings: np.ndarray, responses: np.ndarray, settings: SliceConfig
) -> Iterator[tuple[int, Cells, np.ndarray]]:
    """Every k that leaves each slice enough records, its cells, and the cell of each training record."""
    for k in TRIED_K:
        try:
            cells, labels = make_cells(records, embeddings, responses, replace(settings, k=k))
        except InputError:
            if settings.by:  # bounds on a field ask for as many slices as it has values
                continue
            raise
        if k > 1 and min(np.bincount(labels, minlength=len(cells))) < settings.min_records:
            return
        yield k, cells, labels


def _stalled(tried: dict[int, np.ndarray]) -> bool:
    """Whether the last PATIENCE numbers of slices brought nothing over the best before them."""
    sums = [float(nats.sum()) for nats in tried.values()]
    return len(sums) > PATIENCE and min(sums[-PATIENCE:]) >= min(sums[:-PATIENCE])


def _curve(tried: dict[int, np.ndarray], tokens: np.ndarray, seed: int) -> tuple[Tried, ...]:
    """Figures of each k; the same resamples for all, so that differences between them are paired."""
    ks = list(tried)
    nats = np.stack([tried[k] for k in ks])  # (ks, records)
    draw = np.random.default_rng(seed).integers(nats.shape[1], size=(RESAMPLES, nats.shape[1]))
    means = nats[:, draw].sum(2) / tokens[draw].sum(1)  # (ks, resamples)
    mean = nats.sum(1) / tokens.sum()  # (ks,)
    best = int(mean.argmin())
    slack = (means - means[best]).std(1)  # (ks,) standard error of the difference to the best
    chosen = next(at for at in range(len(ks)) if mean[at] - mean[best] <= slack[at])
    gains = 1 - np.exp(mean - mean[0])
    errors = np.exp(means - means[0]).std(1)
    return tuple(
        Tried(k, float(np.exp(mean[at])), float(gains[at]), float(errors[at]), at == chosen) for at, k in enumerate(ks)
    )
