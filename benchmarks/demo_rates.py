"""A search of the demo's learning rates: on another seed of the sample, judged on its tune split only.

    python benchmarks/demo_rates.py --workspace /tmp/rates --seed 1

Prints tune perplexity of the mixture (every record where a gate is likely to send it) and of both dense rivals at each rate.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from sample_company import open_sample, with_experts

from moe_router.experts.base import Base
from moe_router.experts.encode import encode
from moe_router.experts.scoring import score_examples
from moe_router.experts.train import Plan, likely_mixtures, make_trainer

ROUTED = (3e-4, 1e-3, 2e-3, 4e-3)
SHARED = (4e-3,)
DENSE = (2e-3, 4e-3, 8e-3)


def tune_perplexity(base: Base, plan: Plan) -> float:
    """Train the plan and score its tune split."""
    trainer = make_trainer(base, plan)
    with trainer.model as model:
        trainer.run()
        examples = encode(plan.tune.records, base, plan.config.data.template)
        weights = likely_mixtures(plan.train, plan.tune, len(plan.names))
        return float(score_examples(model, examples, weights).perplexity)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    _, base, plan = open_sample(given.workspace, given.seed)
    config = plan.config
    for shared in SHARED:
        for routed in ROUTED:
            tried = with_experts(config, learning_rate=routed, shared_learning_rate=shared)
            found = tune_perplexity(base, replace(plan, config=tried))
            print(f"mixture routed {routed:g} shared {shared:g}: {found:.4f}", flush=True)
    whole = [replace(split, labels=np.zeros_like(split.labels)) for split in (plan.train, plan.tune)]
    ranks = {"dense_rank": config.experts.rank, "dense_active": config.experts.shared_rank + 2 * config.experts.rank}
    for name, rank in ranks.items():
        for rate in DENSE:
            tried = with_experts(config, mode="isolated", rank=rank, learning_rate=rate)
            found = tune_perplexity(base, Plan(("dense",), *whole, tried, plan.data_digest, len(plan.names)))
            print(f"{name} {rate:g}: {found:.4f}", flush=True)


if __name__ == "__main__":
    main()
