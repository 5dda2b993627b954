"""The mixture and its fair rival trained again: with other seeds, which shows luck, and on fewer tokens, which shows thirst."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from moe_router.experts.scoring import score_examples
from moe_router.gate.gate import Gate
from moe_router.progress import Progress
from moe_router.report import mixes
from moe_router.report.analysis import FAIR_RIVAL
from moe_router.report.arms import Arm, CurvePoint
from moe_router.report.bench import Bench
from moe_router.report.measure import trained_tokens
from moe_router.report.perplexity import bootstrap_interval, perplexity
from moe_router.report.pool import Pool, open_pool
from moe_router.report.registry import ARMS, MIXTURE, Kind, Training, one_rank

SHARES = (0.25, 0.5)
"""Of the training tokens, for the curve."""
AGAIN: dict[str, Kind] = {
    MIXTURE: replace(ARMS[MIXTURE], mix=mixes.refitted, training=Training(one_rank, split="slices", shared=True)),
    FAIR_RIVAL: ARMS[FAIR_RIVAL],
}
"""The mixture anew: all its experts, and a gate fitted to them as the trained one was."""


def repeat(bench: Bench, gate: Gate, progress: Progress) -> dict[str, tuple[float, ...]]:
    """Test perplexity of each arm in AGAIN under `report.seeds` - 1 further training seeds."""
    found: dict[str, tuple[float, ...]] = {}
    for name, kind in AGAIN.items():
        for further in range(1, bench.config.report.seeds):
            with open_pool(bench, f"{name}-{further}", kind, gate, progress, further) as pool:
                found[name] = (*found.get(name, ()), perplexity(_nats(kind, pool), bench.target_tokens))
    return found


def curve(bench: Bench, gate: Gate, progress: Progress, arms: Mapping[str, Arm]) -> tuple[CurvePoint, ...]:
    """Each arm in AGAIN trained on SHARES of the tokens, and as it was measured on all; nothing unless `report.curve`."""
    points: list[CurvePoint] = []
    for name, kind in AGAIN.items() if bench.config.report.curve else ():
        settings = bench.config.report
        for share in SHARES:
            part = replace(kind, training=replace(kind.training, share=share))
            with open_pool(bench, f"{name}-share-{share:g}", part, gate, progress) as pool:
                nats, trained = _nats(part, pool), trained_tokens(pool)
            interval = bootstrap_interval(nats, bench.target_tokens, settings.bootstrap, settings.seed)
            points.append(CurvePoint(name, trained, perplexity(nats, bench.target_tokens), tuple(interval)))
        whole = arms[name]
        points.append(CurvePoint(name, whole.trained_tokens or 0, whole.perplexity, whole.ci95))
    return tuple(points)


def _nats(kind: Kind, pool: Pool) -> np.ndarray:
    """*Shape:* → (records,)."""
    mix = kind.mix(pool)
    return score_examples(pool.model, pool.bench.examples, mix.weights, mix.shared).nats
