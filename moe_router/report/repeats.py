"""The mixture and its fair rival trained again with other seeds: how much of a difference is luck."""

from __future__ import annotations

from dataclasses import replace

from moe_router.experts.scoring import score_examples
from moe_router.gate.gate import Gate
from moe_router.progress import Progress
from moe_router.report import mixes
from moe_router.report.analysis import FAIR_RIVAL
from moe_router.report.bench import Bench
from moe_router.report.perplexity import perplexity
from moe_router.report.pool import open_pool
from moe_router.report.registry import ARMS, MIXTURE, Kind, Training, one_rank

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
            with open_pool(bench, f"{name}-{further}", kind.training, gate, progress, further) as pool:
                mix = kind.mix(pool)
                nats = score_examples(pool.model, bench.examples, mix.weights, mix.shared).nats
            found[name] = (*found.get(name, ()), perplexity(nats, bench.target_tokens))
    return found
