"""The embedded base against others, in one run: adapted to the same records, and its speed.

    python benchmarks/embedded_base.py embedded FOLDER… --data a.jsonl b.jsonl [--records 600]

Every base gets one rank-16 adapter on the same records, once at each learning rate; the best on the tune split counts.
Test figures are bits per byte of the responses, because tokenizers differ, on NF4 weights and, with the adapter trained
there, on unquantised ones. Training and generation are measured on the way, in tokens and in bytes of text a second.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from moe_router.config import BaseConfig, Config
from moe_router.data.prepare import prepare
from moe_router.data.records import Record, load_records
from moe_router.experts.adapters import RoutedModel
from moe_router.experts.base import Base, load_base
from moe_router.experts.encode import encode
from moe_router.experts.scoring import score_examples
from moe_router.experts.train import Plan, Split, make_trainer
from moe_router.workspace import Workspace


def splits(source: Path, config: Config, count: int) -> dict[str, Split]:
    """Up to `count` training records, and a quarter of that for tune and for test."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.find(folder)
        prepare(workspace, [source], config)
        records = load_records(workspace.records)
    draw = np.random.default_rng(0)
    found = {}
    for name, share in {"train": 1.0, "tune": 0.25, "test": 0.25}.items():
        own = [record for record in records if record.split == name]
        chosen = [own[i] for i in draw.permutation(len(own))[: int(count * share)]]
        found[name] = Split(chosen, np.zeros(len(chosen), np.int64), np.zeros((len(chosen), 1), np.float32))
    return found


def bits_per_byte(model: RoutedModel, base: Base, records: list[Record], config: Config) -> float:
    """Of the responses, their end-of-text token included."""
    examples = encode(records, base, config.data.template, config.experts.max_tokens)
    scores = score_examples(model, examples, np.ones((len(records), 1), np.float32))
    return float(scores.nats.sum()) / math.log(2) / sum(len(record.response.encode()) for record in records)


def adapt(base: Base, parts: dict[str, Split], config: Config, rates: list[float]) -> tuple[dict[str, float], float]:
    """Tune and test bits per byte at the best of `rates`, and training tokens a second."""
    best: dict[str, float] = {}
    speed = 0.0
    for rate in rates:
        tried = config.override({"experts": {"learning_rate": rate, "mode": "isolated", "rank": 16}})
        trainer = make_trainer(base, Plan(("dense",), parts["train"], parts["tune"], tried, "", 4))
        with trainer.model as model:
            began = time.perf_counter()
            outcome = trainer.run()["dense"]
            speed = max(speed, outcome.tokens / (time.perf_counter() - began))
            found = {name: bits_per_byte(model, base, list(parts[name].records), tried) for name in ("tune", "test")}
            if best and found["tune"] >= best["tune"]:
                continue
            best = found | {"rate": rate}
    return best, speed


def generation(base: Base, tokens: int = 96) -> tuple[float, float]:
    """Tokens and bytes a second of one greedy answer by the base alone."""
    prompt = torch.tensor([base.tokenizer("User: How do I return a product?\nAssistant:")["input_ids"]])
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    rates = []
    for _ in range(3):
        began = time.perf_counter()
        out = base.model.generate(prompt, **length, do_sample=False, pad_token_id=1)
        text = base.tokenizer.decode(out[0, prompt.shape[1] :])
        rates.append((tokens / (time.perf_counter() - began), len(text.encode()) / (time.perf_counter() - began)))
    return max(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="+")
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--records", type=int, default=600)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-3, 4e-3])
    parser.add_argument("--unquantised", action="store_true", help="also adapt and score unquantised")
    given = parser.parse_args()
    config = Config().override({"experts": {"epochs": given.epochs}})
    for model in given.bases:
        name = Path(model).name
        base = load_base(BaseConfig(model=model))
        tokens, text = generation(base)
        print(f"{name}: generates {tokens:.0f} tokens/s, {text:.0f} bytes/s", flush=True)
        for source in given.data:
            parts = splits(source, config, given.records)
            found, speed = adapt(base, parts, config, given.rates)
            sizes = encode(parts["train"].records, base, config.data.template)
            ratio = sum(len(r.prompt.encode()) + len(r.response.encode()) for r in parts["train"].records)
            ratio /= sum(len(example.tokens) for example in sizes)
            line = f"{name} {source.stem}: test {found['test']:.4f} bits/byte, rate {found['rate']:g}"
            print(f"{line}, trains {speed:.0f} tokens/s, {speed * ratio:.0f} bytes/s", flush=True)
            if given.unquantised:
                plain = load_base(replace(config.base, model=model, quantization="none"))
                other, _ = adapt(plain, parts, config, [found["rate"]])
                lost = found["test"] / other["test"] - 1
                print(f"{name} {source.stem}: unquantised {other['test']:.4f}, NF4 {lost:+.2%}", flush=True)


if __name__ == "__main__":
    main()
