"""Runs experiments of a TOML file over bundles, appends their results to a JSONL file, prints them as a table.

    python -m benchmarks.quality.run benchmarks/quality/split.toml BUNDLES RESULTS.jsonl [--workers 1] [--minutes 60]
    python -m benchmarks.quality.run benchmarks/quality/split.toml BUNDLES RESULTS.jsonl --table

An experiment that is in the results already is not run again. The learning rate and all else is chosen by the tune split;
the table reads the test split of the best setting of each arm only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Experiment = dict[str, Any]
NOT_CHOSEN = ("data", "arm", "seed")
"""What tells the rows of the table apart; the other settings are what tune chooses among."""


def experiments(path: Path) -> list[Experiment]:
    """Every combination of the lists of each `[[run]]`, over the file's defaults."""
    recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    found = []
    for run in recipe["run"]:
        settings = recipe["default"] | run
        lists = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
        found += [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    return sorted(found, key=lambda e: (e["seed"], e["order"]))


def key(experiment: Experiment) -> str:
    """An experiment's settings as text."""
    return json.dumps({k: v for k, v in sorted(experiment.items()) if k != "order"})


class Bundle:
    """A dataset as `data` wrote it."""

    def __init__(self, path: Path) -> None:
        from moe_router.experts.encode import Example

        arrays = dict(np.load(path))
        ends = arrays["lengths"].cumsum()
        self.examples = [
            Example(tuple(arrays["tokens"][end - length : end].tolist()), int(prompt))
            for end, length, prompt in zip(ends, arrays["lengths"], arrays["prompts"], strict=True)
        ]
        self.arrays = arrays
        self.queries = arrays["queries"].astype(np.float32)
        self.split = {name: np.flatnonzero(arrays["split"] == i) for i, name in enumerate(("train", "gate", "tune", "test"))}


def batches(lengths: np.ndarray, rows: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """One epoch in batches of records of similar length, in random order."""
    order = np.argsort(lengths + draw.random(len(lengths)) * 32)
    parts = [order[at : at + rows] for at in range(0, len(order), rows)]
    for index in draw.permutation(len(parts)):
        yield parts[index]


def training_weights(e: Experiment, bundle: Bundle, labels: np.ndarray) -> np.ndarray:
    """(training records, experts): own slice alone, or the two slices whose training queries are nearest."""
    own = np.eye(e["experts"], dtype=np.float32)[labels]
    if e["experts"] == 1 or e["trained"] == "own":
        return own
    queries = bundle.queries[bundle.split["train"]]
    centers = np.stack([queries[labels == k].mean(0) for k in range(e["experts"])])
    near = queries @ (centers / np.linalg.norm(centers, axis=1, keepdims=True)).T
    near[np.arange(len(near)), labels] += e["margin"]
    top = np.exp((near - near.max(1, keepdims=True)) / e["softness"])
    top[top < np.sort(top, axis=1)[:, -2:-1]] = 0
    return (top / top.sum(1, keepdims=True)).astype(np.float32)


def run(e: Experiment, bundle: Bundle, base: Any, minutes_left: float) -> dict[str, Any]:
    """Train one mixture, fit its gate, measure it."""
    from benchmarks.quality.joint import Joint, Shape

    began = time.monotonic()
    shared_rate = e["shared_rate"] if e["shared"] else 0.0
    joint = Joint(base, Shape(e["experts"], e["rank"], e["shared"], e["rate"], shared_rate), seed=e["seed"])
    train = bundle.split["train"]
    labels = np.zeros(len(train), int) if e["experts"] == 1 else bundle.arrays[f"slices{e['experts']}"][train]
    weights = training_weights(e, bundle, labels)
    lengths, draw = bundle.arrays["lengths"][train], np.random.default_rng(e["seed"])
    plan = [batch for _ in range(e["epochs"]) for batch in batches(lengths, e["rows"], draw)]
    with joint.model as model:
        losses = []
        for step, batch in enumerate(plan):
            warm = min(1.0, (step + 1) / (0.05 * len(plan)))
            share = warm * (1 - 0.9 * step / len(plan))
            losses.append(joint.step([bundle.examples[i] for i in train[batch]], weights[batch], share))
            if time.monotonic() - began > 60 * minutes_left:
                raise TimeoutError
        trained = time.monotonic() - began
        found = measure(e, bundle, model, labels)
    last = [float(loss) for loss in losses[-50:]]
    return found | {"train_loss": float(np.mean(last)), "seconds": [round(trained, 1), round(time.monotonic() - began, 1)]}


def measure(e: Experiment, bundle: Bundle, model: Any, labels: np.ndarray) -> dict[str, Any]:
    """Perplexities on tune and test: of the gate's top choices, of each record's own slice, of the best expert."""
    from moe_router.experts import scoring
    from moe_router.gate.baselines import MIXING_TEMPERATURES, search_temperature
    from moe_router.gate.features import Memory
    from moe_router.gate.fit import Measured, fit_gate
    from moe_router.gate.weights import keep_top, softmax

    scoring.BATCH_TOKENS = 16_384

    def nats(split: str, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = scoring.score_examples(model, [bundle.examples[i] for i in bundle.split[split]], weights)
        return scores.nats, scores.tokens

    def perplexity(split: str, weights: np.ndarray) -> float:
        found, tokens = nats(split, weights)
        return float(np.exp(found.sum() / tokens.sum()))

    k = e["experts"]
    if k == 1:
        return {
            split: {"gate": perplexity(split, np.ones((len(bundle.split[split]), 1), np.float32))} for split in ("tune", "test")
        }
    measured = {}
    for split in ("gate", "tune", "test"):
        columns = [nats(split, np.tile(row, (len(bundle.split[split]), 1))) for row in np.eye(k, dtype=np.float32)]
        measured[split] = Measured(bundle.queries[bundle.split[split]], np.stack([c[0] for c in columns], 1), columns[0][1])
    train = bundle.split["train"]
    fit = fit_gate(Memory.of(bundle.queries[train], labels, 0), measured["gate"], measured["tune"])
    tune_logits = fit.logits(measured["tune"].embeddings)
    top = e["top"]
    tokens = measured["tune"].tokens.sum()
    mixing, _ = (
        search_temperature(
            MIXING_TEMPERATURES,
            lambda t: keep_top(softmax(tune_logits / t), top),
            lambda weights: float(nats("tune", weights)[0].sum() / tokens),
        )
        if top > 1
        else (1.0, None)
    )
    found: dict[str, Any] = {}
    for split in ("tune", "test"):
        own = bundle.arrays[f"slices{k}"][bundle.split[split]]
        losses = measured[split]
        logits = fit.logits(losses.embeddings)
        total = losses.tokens.sum()
        found[split] = {
            "gate": perplexity(split, keep_top(softmax(logits / mixing), top)),
            "top1": float(np.exp(losses.nats[np.arange(len(own)), logits.argmax(1)].sum() / total)),
            "own": float(np.exp(losses.nats[np.arange(len(own)), own].sum() / total)),
            "oracle": float(np.exp(losses.nats.min(1).sum() / total)),
        }
    return found | {"mixing": mixing}


def work(path: Path, bundles: Path, out: Path, index: int, deadline: float) -> None:
    """One worker: takes what no other has claimed until nothing or no time is left."""
    import torch

    from moe_router.config import BaseConfig
    from moe_router.experts import bnb
    from moe_router.experts.base import load_base

    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 8) if torch.cuda.is_available() else torch.get_num_threads())
    claims = out.with_suffix(".claims")
    claims.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["key"] for line in out.read_text().splitlines()} if out.exists() else set()
    base, loaded = load_base(BaseConfig()), {}
    if not base.resident:
        bnb.make_resident(base.model, base.dtype)
    for number, experiment in enumerate(experiments(path)):
        if key(experiment) in done or time.time() > deadline:
            continue
        try:
            os.close(os.open(claims / str(number), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        name = experiment["data"]
        loaded[name] = loaded.get(name) or Bundle(bundles / f"{name}.npz")
        try:
            found = run(experiment, loaded[name], base, (deadline - time.time()) / 60)
        except TimeoutError:
            return
        line = json.dumps({"key": key(experiment), **experiment, **found})
        with out.open("a") as results:
            results.write(line + "\n")
        print(index, line, flush=True)


def table(out: Path) -> str:
    """Each arm at the setting that tune likes best: tune, then test figures."""
    results = [json.loads(line) for line in out.read_text().splitlines()]
    rows = ["data | arm | seed | rates | tune | test | top 1 | own slice | oracle", "---|---|---|---|---|---|---|---|---"]
    groups: dict[tuple, list[dict]] = {}
    for result in results:
        groups.setdefault(tuple(result[name] for name in NOT_CHOSEN), []).append(result)
    for group, members in sorted(groups.items()):
        best = min(members, key=lambda r: r["tune"]["gate"])
        test = best["test"]
        others = " | ".join(f"{test[name]:.3f}" if name in test else "" for name in ("top1", "own", "oracle"))
        rates = f"{best['rate']:g}" + (f" / {best['shared_rate']:g}" if best["shared"] else "")
        rows.append(f"{' | '.join(map(str, group))} | {rates} | {best['tune']['gate']:.3f} | {test['gate']:.3f} | {others}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        deadline = time.time() + 60 * given.minutes
        shutil.rmtree(given.out.with_suffix(".claims"), ignore_errors=True)
        start = multiprocessing.get_context("spawn")
        workers = [
            start.Process(target=work, args=(given.recipe, given.bundles, given.out, i, deadline)) for i in range(given.workers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    print(table(given.out))


if __name__ == "__main__":
    main()
