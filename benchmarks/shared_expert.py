"""Two ways of training the shared expert, on another seed of the sample, judged on its tune split.

    python benchmarks/shared_expert.py --workspace /tmp/shared --seed 1

`joint`: shared and routed experts learn from every row in one pass. `first`: the shared one on everything, then the routed
ones over it, frozen; at the same number of passes (twice the tokens) and at half the passes each (the same tokens).
Prints tune perplexity with every record on its own slice's expert, and training tokens.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import replace

import numpy as np
from sample_company import open_sample, with_experts

from moe_router.experts.encode import encode
from moe_router.experts.scoring import score_examples
from moe_router.experts.train import train_library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    workspace, base, demo = open_sample(given.workspace, given.seed)
    config, tune = demo.config, demo.tune
    examples = encode(tune.records, base, config.data.template)
    weights = np.eye(len(demo.names), dtype=np.float32)[tune.labels]
    epochs = config.experts.epochs
    tries = {"joint": {}, "first": {"shared_first": True}, "first, half": {"shared_first": True, "epochs": epochs / 2}}
    for name, change in tries.items():
        for routed in (3e-4, 1e-3):
            plan = replace(demo, config=with_experts(config, learning_rate=routed, **change))
            folder = workspace.root / "tried"
            began = time.monotonic()
            library = train_library(folder, plan, workspace.checkpoints / "tried.safetensors", base=base)
            seconds = time.monotonic() - began
            cards = library.cards
            passed = cards["shared"]["tokens"] + (sum(cards[n]["tokens"] for n in library.names) if name != "joint" else 0)
            with library.open(base) as model:
                mixture = float(score_examples(model, examples, weights).perplexity)
                alone = float(score_examples(model, examples, np.zeros_like(weights)).perplexity)
            print(
                f"{name:<12} routed {routed:g}: {mixture:.4f} (shared alone {alone:.4f}), {passed:,} tokens, {seconds:.0f} s",
                flush=True,
            )
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
