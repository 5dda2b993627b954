"""What the arms' losses say beyond one number each: by slice, gate against experts, and how the gate routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from moe_router.gate.calibrate import calibration_error
from moe_router.gate.gate import Decisions
from moe_router.report.arms import Comparison, ExpertRow, Regret, Routing, SliceMap, SliceRow
from moe_router.report.perplexity import mean_interval, perplexity
from moe_router.report.registry import MIXTURE

FAIR_RIVAL = "dense_active"
BINS = 10
COVERAGES = 20
MAPPED = 400
"""Most test queries on the map."""
Losses = Mapping[str, np.ndarray]
"""Nats (records,) of each arm."""


def slice_rows(
    names: Sequence[str], labels: np.ndarray, losses: Losses, tokens: np.ndarray, resamples: int, seed: int
) -> tuple[SliceRow, ...]:
    """One row for each slice with test records. *Shape:* labels and tokens (records,)."""
    rows = []
    for index, name in enumerate(names):
        own = labels == index
        if not own.any():
            continue
        part = {arm: nats[own] for arm, nats in losses.items()}
        against = None
        if {MIXTURE, FAIR_RIVAL} <= part.keys():
            against = Comparison.measured((MIXTURE, FAIR_RIVAL), part, tokens[own], resamples, seed)
        levels = {arm: perplexity(nats, tokens[own]) for arm, nats in part.items()}
        rows.append(SliceRow(name, int(own.sum()), int(tokens[own].sum()), levels, against))
    return tuple(rows)


def regret(losses: Losses, tokens: np.ndarray, resamples: int, seed: int) -> Regret | None:
    """The mixture's distance from its fair rival in two parts; None where an arm of it is missing.

    mixture - rival = (mixture - oracle) + (oracle - rival). The oracle picks one expert a record, so a mixture of two may
    beat it, and the gate's part be negative.
    """
    if not {MIXTURE, FAIR_RIVAL, "oracle"} <= losses.keys():
        return None
    parts = losses[MIXTURE] - losses["oracle"], losses["oracle"] - losses[FAIR_RIVAL]
    (gate, experts), (gate_ci, experts_ci) = (
        [float(part.sum() / tokens.sum()) for part in parts],
        [mean_interval(part, tokens, resamples, seed) for part in parts],
    )
    return Regret(FAIR_RIVAL, gate, gate_ci, experts, experts_ci)


def expert_rows(
    names: Sequence[str], labels: np.ndarray, base: np.ndarray, alone: np.ndarray, tokens: np.ndarray
) -> tuple[ExpertRow, ...]:
    """Each expert on its own slice, before and after. *Shape:* base (records,), alone (records, experts)."""
    rows = []
    for index, name in enumerate(names):
        own = labels == index
        if own.any():
            before, after = (perplexity(nats[own], tokens[own]) for nats in (base, alone[:, index]))
            rows.append(ExpertRow(name, int(tokens[own].sum()), before, after))
    return tuple(rows)


def routing(
    names: Sequence[str],
    labels: np.ndarray,
    decided: Decisions,
    alone: np.ndarray,
    nats: np.ndarray,
    tokens: np.ndarray,
) -> Routing:
    """How the gate used the experts and how far its confidence can be trusted.

    `decided` has the weights without abstention, and where it would abstain. *Shape:* labels and nats, the mixture's,
    (records,), alone (records, experts).
    """
    weights = decided.weights
    first, best = weights.argmax(1), alone.argmin(1)
    share = weights.mean(0) / weights.mean(0).sum()
    used = share[share > 0]
    count = len(names)
    return Routing(
        experts=tuple(names),
        weight=_floats(share),
        first=_floats(np.bincount(first, minlength=count) / len(first)),
        best=_floats(np.bincount(best, minlength=count) / len(best)),
        balance=float(np.exp(-(used * np.log(used)).sum()) / count),
        hits=float((first == best).mean()),
        calibration_error=calibration_error(decided.confidence, first == best),
        calibration=_calibration(decided.confidence, first == best),
        risk=_risk(decided.confidence, nats, tokens),
        abstained=float(decided.abstained.mean()),
        perplexity=tuple(_floats(_alone_on(labels == i, alone, tokens)) for i in range(count)),
        chosen_by_slice=_crossed(labels, first, count),
        chosen_by_best=_crossed(best, first, count),
    )


def slice_map(
    names: Sequence[str], labels: np.ndarray, embeddings: np.ndarray, losses: Losses, tokens: np.ndarray
) -> SliceMap | None:
    """At most MAPPED test queries, evenly spaced; None where an arm or a plane is missing.

    *Shape:* labels and tokens (records,), embeddings (records, dimension).
    """
    present = np.unique(labels)
    if not {MIXTURE, FAIR_RIVAL} <= losses.keys() or len(present) < 2:
        return None
    centres = np.stack([embeddings[labels == i].mean(0) for i in present]).astype(np.float64)
    middle = centres.mean(0)
    _, spread, directions = np.linalg.svd(centres - middle, full_matrices=False)
    kept = np.linspace(0, len(labels) - 1, min(MAPPED, len(labels))).astype(int)
    flat = (embeddings[kept] - middle) @ directions[:2].T  # (kept, 2)
    lead = (losses[FAIR_RIVAL] - losses[MIXTURE])[kept] / tokens[kept]
    return SliceMap(
        slices=tuple(names),
        x=_floats(flat[:, 0].round(4)),
        y=_floats(flat[:, 1].round(4)),
        slice=tuple(int(i) for i in labels[kept]),
        lead=_floats(lead.round(4)),
        share=float((spread[:2] ** 2).sum() / (spread**2).sum()),
    )


def source_names(sources: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the files in `file:line` sources, and each record's place among them: (records,).

    Files are named without their folder, unless two would share the name.
    """
    files = [source.rpartition(":")[0] or source for source in sources]
    paths = list(dict.fromkeys(files))
    short = [Path(path).name for path in paths]
    names = tuple(name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True))
    return names, np.array([paths.index(file) for file in files])


def _alone_on(own: np.ndarray, alone: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Every expert's perplexity on the records of one slice, NaN-free: 0 where it has none. *Shape:* → (experts,)."""
    return np.exp(alone[own].sum(0) / tokens[own].sum()) if own.any() else np.zeros(alone.shape[1])


def _crossed(rows: np.ndarray, columns: np.ndarray, count: int) -> tuple[tuple[int, ...], ...]:
    """How many records fall on each pair: (records,), (records,) → (count, count)."""
    found = np.bincount(rows * count + columns, minlength=count * count).reshape(count, count)
    return tuple(tuple(row) for row in found.tolist())


def _calibration(confidence: np.ndarray, right: np.ndarray) -> tuple[tuple[float, float, int], ...]:
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [which == b for b in np.unique(which)]
    return tuple((float(confidence[own].mean()), float(right[own].mean()), int(own.sum())) for own in bins)


def _risk(confidence: np.ndarray, nats: np.ndarray, tokens: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Perplexity on the most confident share of the queries, for COVERAGES shares up to all."""
    order = np.argsort(-confidence, kind="stable")
    sizes = sorted({max(1, round(len(order) * (i + 1) / COVERAGES)) for i in range(COVERAGES)})
    return tuple((size / len(order), perplexity(nats[order[:size]], tokens[order[:size]])) for size in sizes)


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
