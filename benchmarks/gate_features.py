"""What a gate should see: the embedding, the base's states after some layer, or both, on a workspace whose gate is trained.

    python benchmarks/gate_features.py WORKSPACE [--layers 1 2 4]

Every gate is fitted as `train-gate` fits it and scored on the test split; the workspace ends with the gate of its settings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from moe_router.config import Config
from moe_router.data.embed import query_text
from moe_router.data.slices import Slices
from moe_router.experts.base import load_base
from moe_router.experts.encode import encode
from moe_router.experts.library import Library
from moe_router.experts.scoring import expert_scores, score_examples
from moe_router.experts.train import Split
from moe_router.gate.sight import open_sight
from moe_router.gate.train import train_gate
from moe_router.workspace import Workspace

TIMED = 60


def processor(call: Callable[[str], object], texts: list[str]) -> float:
    """Milliseconds of processor time of a call, after a few to warm up."""
    for text in texts[:5]:
        call(text)
    start = time.process_time()
    for text in texts:
        call(text)
    return 1e3 * (time.process_time() - start) / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    given = parser.parse_args()
    torch.set_num_threads(1)
    workspace = Workspace(given.workspace)
    config, library = Config.load(workspace.config), Library.load(workspace.experts)
    test = Split.of(workspace, Slices.load(workspace), "test")
    settings = [{"features": "embedding"}]
    settings += [{"features": each, "hidden_layer": layer} for layer in given.layers for each in ("hidden", "both")]
    base = load_base(library.base)
    texts = [query_text(record.messages) for record in test.records][:TIMED]
    with library.open(base) as model:
        alone = expert_scores(model, test.records, template=library.template, max_tokens=library.max_tokens)
        examples = encode(test.records, base, library.template, library.max_tokens)
        oracle, tokens = alone.nats.min(1), alone.tokens.sum()
        print("| features | layer | top-1 | of oracle | top-2 | of oracle | best chosen | processor, ms a query |")
        for each in settings:
            gate = train_gate(workspace, config.override({"gate": each}), model=model)
            sight = open_sight(gate, library, base)
            seen = sight.of(test)
            nats = {}
            for mode in ("top1", "top2"):
                nats[mode] = score_examples(model, examples, gate.decide(seen, mode, abstain=False).weights).nats
            cells = [each["features"], str(each.get("hidden_layer", ""))]
            for found in nats.values():
                cells += [f"{np.exp(found.sum() / tokens):.3f}", f"{np.exp((oracle - found).sum() / tokens):.1%}"]
            hits = (gate.decide(seen, "top1", abstain=False).weights.argmax(1) == alone.nats.argmin(1)).mean()
            spent = processor(lambda text, gate=gate, sight=sight: gate.decide(sight.encode([text])), texts)
            print("| " + " | ".join([*cells, f"{hits:.0%}", f"{spent:.1f}"]) + " |", flush=True)
        train_gate(workspace, config, model=model)


if __name__ == "__main__":
    main()
