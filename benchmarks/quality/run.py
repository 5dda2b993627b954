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
MOST = {"gate": 1000, "tune": 800, "test": 1700}
"""Records of a split that are measured, drawn once."""


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
        for name, most in MOST.items():
            self.split[name] = np.sort(np.random.default_rng(0).permutation(self.split[name])[:most])


def batches(lengths: np.ndarray, rows: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """One epoch in batches of records of similar length, in random order."""
    order = np.argsort(lengths + draw.random(len(lengths)) * 32)
    parts = [order[at : at + rows] for at in range(0, len(order), rows)]
    for index in draw.permutation(len(parts)):
        yield parts[index]


def near_slices(bundle: Bundle, labels: np.ndarray, k: int, e: Experiment) -> np.ndarray:
    """How strongly each training record belongs to each slice, as logits (training records, k): likeness of its query to
    the slice's mean query, its own slice a margin ahead."""
    queries = bundle.queries[bundle.split["train"]]
    centers = np.stack([queries[labels == i].mean(0) for i in range(k)])
    near = queries @ (centers / np.linalg.norm(centers, axis=1, keepdims=True)).T
    near[np.arange(len(near)), labels] += e["margin"]
    return near / e["softness"]


def coarser(bundle: Bundle, labels: np.ndarray, k: int, groups: int, seed: int) -> np.ndarray:
    """(k, groups) one-hot: the slices gathered into groups, by k-means of their mean queries."""
    from sklearn.cluster import KMeans

    queries = bundle.queries[bundle.split["train"]]
    centers = np.stack([queries[labels == i].mean(0) for i in range(k)])
    found = KMeans(groups, n_init=10, random_state=seed).fit(centers).labels_
    return np.eye(groups, dtype=np.float32)[found]


def run(e: Experiment, bundle: Bundle, base: Any, minutes_left: float) -> dict[str, Any]:
    """Train one mixture, fit its gate, measure it."""
    from benchmarks.quality.joint import Joint, Shape
    from moe_router.gate.weights import keep_top, softmax

    began = time.monotonic()
    k, train = e["slices"], bundle.split["train"]
    labels = np.zeros(len(train), int) if k == 1 else bundle.arrays[f"slices{k}"][train].astype(int)
    routes = np.eye(k, dtype=np.float32)  # (routes, experts): what a record of each slice uses
    ranks = (e["rank"],) * k
    if e["coarse"]:
        routes = np.concatenate([routes, coarser(bundle, labels, k, e["coarse"], e["seed"])], 1)
        ranks += (e["coarse_rank"],) * e["coarse"]
    also = {name: e[name] for name in ("decay", "up_ratio", "rslora", "dropout")}
    shape = Shape(ranks, e["shared"], e["rate"], e["shared_rate"], e["rows"], **also)
    joint = Joint(base, shape, seed=e["seed"])
    belongs = near_slices(bundle, labels, k, e) if k > 1 else np.zeros((len(train), 1))
    kept = e["trained"]  # slices that a record trains
    weights = keep_top(softmax(belongs), kept) if kept > 1 else routes[:, :k][labels]
    draw = np.random.default_rng(e["seed"])
    epochs = [list(batches(bundle.arrays["lengths"][train], e["rows"], draw)) for _ in range(e["epochs"])]
    steps = sum(map(len, epochs))
    losses: list[Any] = []
    with joint.model:
        for number, plan in enumerate(epochs):
            if number and e["resliced"] and k > 1:
                found = measured_by(joint, bundle, "train", routes)
                belief = softmax(belongs - found.losses / e["resliced"])
                labels = belief.argmax(1)
                weights = keep_top(belief, kept) if kept > 1 else routes[:, :k][labels]
            for batch in plan:
                done = len(losses)
                warm = min(1.0, (done + 1) / (0.05 * steps))
                share = warm * (1 - 0.95 * done / steps)
                losses.append(joint.step([bundle.examples[i] for i in train[batch]], weights[batch] @ routes, share))
                if time.monotonic() - began > 60 * minutes_left:
                    raise TimeoutError
        trained = time.monotonic() - began
        found = measure(e, bundle, joint, labels, routes)
    last = [float(loss) for loss in losses[-50:]]
    return found | {"train_loss": float(np.mean(last)), "seconds": [round(trained, 1), round(time.monotonic() - began, 1)]}


def measured_by(joint: Any, bundle: Bundle, split: str, routes: np.ndarray) -> Any:
    """The loss of every route on every record of a split."""
    from moe_router.gate.fit import Measured

    chosen = bundle.split[split]
    examples = [bundle.examples[i] for i in chosen]
    nats = np.stack([joint.nats(examples, np.tile(row, (len(examples), 1))) for row in routes], 1)
    return Measured(bundle.queries[chosen], nats, np.array([example.target_tokens for example in examples]))


def measure(e: Experiment, bundle: Bundle, joint: Any, labels: np.ndarray, routes: np.ndarray) -> dict[str, Any]:
    """Perplexities on tune and test: of the gate's top choices, of each record's own slice, of the best expert."""
    from moe_router.gate.baselines import MIXING_TEMPERATURES, search_temperature
    from moe_router.gate.fit import fit_gate
    from moe_router.gate.weights import keep_top, softmax

    measured = {split: measured_by(joint, bundle, split, routes) for split in ("tune", "test")}
    k = len(routes)

    def perplexity(split: str, nats: np.ndarray) -> float:
        return float(np.exp(nats.sum() / measured[split].tokens.sum()))

    def mixed(split: str, logits: np.ndarray, temperature: float) -> np.ndarray:
        weights = keep_top(softmax(logits / temperature), e["top"])
        return joint.nats([bundle.examples[i] for i in bundle.split[split]], weights @ routes)

    if k == 1:
        return {split: {"gate": perplexity(split, measured[split].nats)} for split in measured}
    fit = fit_gate(memory(bundle, labels), measured_by(joint, bundle, "gate", routes), measured["tune"])
    logits = {split: fit.logits(measured[split].embeddings) for split in measured}
    mixing = 1.0
    if e["top"] > 1:
        mixing, _ = search_temperature(MIXING_TEMPERATURES, lambda t: t, lambda t: mixed("tune", logits["tune"], t).sum())
    found: dict[str, Any] = {"mixing": mixing}
    for split, losses in measured.items():
        own = bundle.arrays[f"slices{k}"][bundle.split[split]]
        rows = np.arange(len(own))
        found[split] = {
            "gate": perplexity(split, mixed(split, logits[split], mixing)),
            "top1": perplexity(split, losses.nats[rows, logits[split].argmax(1)]),
            "own": perplexity(split, losses.nats[rows, own]),
            "oracle": perplexity(split, losses.nats.min(1)),
        }
    return found


_MEMORIES: dict[bytes, Any] = {}


def memory(bundle: Bundle, labels: np.ndarray) -> Any:
    """The gate's memory of the training queries, kept for the next experiment on the same slices."""
    from moe_router.gate.features import Memory

    name = labels.tobytes()
    if name not in _MEMORIES:
        _MEMORIES[name] = Memory.of(bundle.queries[bundle.split["train"]], labels, 0)
    return _MEMORIES[name]


def work(path: Path, bundles: Path, out: Path, index: int, deadline: float) -> None:
    """One worker: takes what no other has claimed until nothing or no time is left."""
    import torch

    from moe_router.config import BaseConfig
    from moe_router.experts import bnb
    from moe_router.experts.base import load_base

    if torch.cuda.is_available():
        torch.set_num_threads(2)  # the workers share the host
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
