"""A report of invented losses, for everything that only shows reports."""

import numpy as np

from moe_router.gate.gate import Decisions
from moe_router.report import analysis
from moe_router.report.arms import Arm, Comparison, Costs, CurvePoint
from moe_router.report.document import Report
from moe_router.report.verdict import judge

NOW = ("base", "dense_rank", "dense_active", "uniform", "cbtm", "gate_top1", "gate_top2", "oracle")
LEVEL = {"base": 49.4, "uniform": 14.6, "dense_rank": 10.9, "shuffled_gate": 12.9, "dense_active": 10.1, "oracle": 9.4}
RANKS = {"base": 0, "dense_rank": 8, "uniform": 72, "dense_params": 72, "gate_soft": 72, "oracle": 16, "gate_top1": 16}
SLICES = ("returns-refunds", "férias-salários", "<orders> & co")
RECORDS = 300


def losses_of(names=NOW, seed=0):
    """Nats (records,) of each arm, and tokens (records,)."""
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 40, RECORDS)
    shape = random.gamma(16, 1 / 16, RECORDS)
    losses = {
        name: np.log(LEVEL.get(name, 9.7 + 0.05 * i)) * shape * tokens * random.normal(1, 0.02, RECORDS)
        for i, name in enumerate(names)
    }
    return losses, tokens


def routing_of(losses, tokens, labels, seed=0):
    random = np.random.default_rng(seed)
    alone = losses["gate_top2"][:, None] * random.uniform(1, 1.4, (RECORDS, len(SLICES)))
    weights = random.dirichlet((1, 0.6, 0.3), RECORDS)
    decided = Decisions(weights, weights.max(1), weights.max(1) < 0.4, np.ones(RECORDS))
    return analysis.routing(SLICES, labels, decided, alone, losses["gate_top2"], tokens)


def curve_of(arms):
    """The mixture and its rival, worse the fewer tokens they saw."""
    chosen = [arm for arm in arms if arm.id in ("gate_top2", "dense_active")]
    return tuple(
        CurvePoint(arm.id, round(40_000 * share), arm.perplexity / share**0.3, tuple(edge / share**0.3 for edge in arm.ci95))
        for arm in (chosen if len(chosen) == 2 else ())
        for share in (0.25, 0.5, 1)
    )


def fake(names=NOW, seed=0, **more):
    """A report with every part that the arms in `names` allow."""
    losses, tokens = losses_of(names, seed)
    labels = np.arange(RECORDS) % len(SLICES)
    arms = []
    for name in names:
        rank = RANKS.get(name, 24)
        flops = 33.4e6 + 95e3 * rank
        costs = Costs(flops, flops, 5e12 if rank else 0, rank * 47_616, rank * 47_616, 40e6, 30e6)
        speeds = {"tokens_per_second": 5000.0, "generated_per_second": 400.0, "bits_per_byte": 1.25}
        arms.append(
            Arm.measured(
                name, losses[name], tokens, costs, key_fact_accuracy=0.5, agreement=0.8, distinct_answers=3.0, **speeds
            )
        )
    rivals = [name for name in names if name != "gate_top2"]
    rows = tuple(Comparison.measured(("gate_top2", rival), losses, tokens) for rival in rivals)
    slices = analysis.slice_rows(SLICES, labels, losses, tokens, 200, 0)
    files = analysis.slice_rows(("tickets.csv", "chats.txt"), np.arange(RECORDS) % 2, losses, tokens, 200, 0)
    embeddings = np.random.default_rng(seed).normal(size=(RECORDS, 16)) + 3 * np.eye(16)[labels]
    split = analysis.regret(losses, tokens, 200, 0)
    alone = np.stack([losses["gate_top2"] * factor for factor in (1.0, 1.1, 1.2)], 1)
    return Report(
        arms=tuple(arms),
        experts=analysis.expert_rows(SLICES, labels, losses["base"], alone, tokens),
        comparisons=rows,
        verdict=judge(arms, rows, slices, split),
        slices=slices,
        regret=split,
        sources=files,
        routing=routing_of(losses, tokens, labels),
        slice_map=analysis.slice_map(SLICES, labels, embeddings, losses, tokens),
        curve=curve_of(arms),
        environment={"versions": {"torch": "2.13"}, "command": "report | tee", "seeds": [0], "test_digest": "d"},
        timings={"prepare": 1.25, "train experts": 140.0},
        notes=("One seed.",),
        answer_tokens=(20.0, 15.0),
        inputs="abc",
        **more,
    )


ANSWERS = [
    {
        "question": "How long <b>now</b>?",
        "reference": "14 days",
        "route": {"returns-refunds": 0.8, "férias-salários": 0.2},
        "confidence": 0.9,
        "answers": {"base": "<script>alert(1)</script>", "gate_top2": "14 dias úteis"},
    }
]
