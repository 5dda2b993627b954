"""The gate on CLINC150 (Larson et al. 2019) as routing data: ten domains stand for ten experts, out-of-scope queries for what
none of them knows.

    python benchmarks/gate_clinc.py [--data clinc150.jsonl] [--cache clinc.npy]

Only in-scope queries of the train split are learned from, labelled with their domain alone. The out-of-scope scores are
ranked on pockets of queries that are held out of that split, and whole domains, so no out-of-scope query chooses one. The
test split is read once, for the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moe_router.data.embed import load_embedder
from moe_router.gate.calibrate import calibration_error, confidence_temperature
from moe_router.gate.features import Memory
from moe_router.gate.fit import Measured, fit_gate
from moe_router.gate.weights import softmax

GATE_SHARE, TUNE_SHARE = 0.12, 0.08
POCKETS = 15
"""Per domain, where a score is over groups of queries."""
FOLDS = 3
"""Of held-out pockets, and as many of held-out domains."""
OWN = 2000
"""Known queries that are kept from the fit in each fold, to compare with the strange ones."""


class Clinc:
    """Embeddings (queries, dimension), the domain of each query (-1: out of scope) and its split."""

    def __init__(self, data: Path, cache: Path | None) -> None:
        rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
        if cache is not None and cache.exists():
            self.x = np.load(cache)
        else:
            self.x = load_embedder().encode([row["text"] for row in rows])
            if cache is not None:
                np.save(cache, self.x)
        self.domains = sorted({row["domain"] for row in rows} - {"oos"})
        self.y = np.array([self.domains.index(row["domain"]) if row["domain"] != "oos" else -1 for row in rows])
        self.split = np.array([row["split"] for row in rows])

    def of(self, split: str, inside: bool = True) -> np.ndarray:
        return np.flatnonzero((self.split == split) & ((self.y >= 0) == inside))


def area(inside: np.ndarray, outside: np.ndarray) -> float:
    """AUROC: how often an in-scope query scores above an out-of-scope one."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(np.repeat([1, 0], [len(inside), len(outside)]), np.concatenate([inside, outside])))


def groups(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """POCKETS groups of each label's points by k-means. *Shape:* (n, dimension), (n,) → (n,)."""
    from sklearn.cluster import KMeans

    found = np.zeros(len(y), dtype=np.int64)
    for label in np.unique(y):
        found[y == label] = label * POCKETS + KMeans(POCKETS, n_init=1, random_state=seed).fit(x[y == label]).labels_
    return np.unique(found, return_inverse=True)[1]


def nearest(queries: np.ndarray, known: np.ndarray, k: int) -> np.ndarray:
    """Mean cosine similarity to the k nearest (kNN score, Sun et al. 2022)."""
    return np.partition(queries @ known.T, -k, axis=1)[:, -k:].mean(1)


def mahalanobis(queries: np.ndarray, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Minus the distance to the nearest class mean under one covariance (Lee et al. 2018)."""
    means = np.stack([x[labels == label].mean(0) for label in np.unique(labels)])
    spread = np.cov((x - means[np.unique(labels, return_inverse=True)[1]]).T)
    root = np.linalg.cholesky(np.linalg.inv(spread + np.trace(spread) / len(spread) * np.eye(len(spread))))
    a, b = queries @ root, means @ root
    return -((a * a).sum(1)[:, None] - 2 * a @ b.T + (b * b).sum(1)).min(1)


def score_all(x: np.ndarray, y: np.ndarray, queries: np.ndarray) -> dict[str, np.ndarray]:
    """Every score of `queries`, learned from x (n, dimension) and domains y (n,); larger means in scope."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=10, max_iter=200).fit(x, y)
    logits = queries @ model.coef_.T + model.intercept_
    pockets = groups(x, y, 0)
    centers = np.stack([x[pockets == g].mean(0) for g in range(pockets.max() + 1)])
    known, place = np.unique(y, return_inverse=True)
    read = Memory.of(x, place, 0).read(queries, len(known))
    one_pocket = Memory.of(x, place, 0, pockets=1).read(queries, len(known))
    return {
        "largest softmax (Hendrycks & Gimpel 2017)": softmax(logits).max(1),
        "energy (Liu et al. 2020)": np.log(np.exp(logits).sum(1)),
        "Mahalanobis, domains": mahalanobis(queries, x, y),
        "Mahalanobis, pockets": mahalanobis(queries, x, pockets),
        "kNN, 1": nearest(queries, x, 1),
        "kNN, 3": nearest(queries, x, 3),
        "kNN, 3 of 4,096 (the gate until now)": nearest(queries, x[np.random.default_rng(0).permutation(len(x))[:4096]], 3),
        "nearest sub-centroid": nearest(queries, centers / np.linalg.norm(centers, axis=1, keepdims=True), 1),
        "nearest prototype": read.nearest,
        "largest claim of a domain": one_pocket.claim,
        "largest claim of a pocket": read.claim,
        "claim × nearest prototype (the gate)": read.likeness,
    }


def held_out(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Indices (learned, own, strange): some pockets, then some domains, are strange to what is learned."""
    random = np.random.default_rng(1)
    for labels in (groups(x, y, 1), y):
        for strange in np.array_split(random.permutation(labels.max() + 1), 5)[:FOLDS]:
            out = np.isin(labels, strange)
            known = random.permutation(np.flatnonzero(~out))
            yield known[OWN:], known[:OWN], np.flatnonzero(out)


def routing(data: Clinc) -> None:
    """Accuracy and calibration of the gate itself, fitted as `train-gate` fits it."""
    train = np.random.default_rng(0).permutation(data.of("train"))
    first, second = int(GATE_SHARE * len(train)), int((GATE_SHARE + TUNE_SHARE) * len(train))
    gate, tune, rest = train[:first], train[first:second], train[second:]

    def measured(chosen: np.ndarray) -> Measured:  # the own domain's expert answers, any other misses by a nat a token
        return Measured(data.x[chosen], 1.0 - np.eye(len(data.domains))[data.y[chosen]], np.ones(len(chosen)))

    fit = fit_gate(Memory.of(data.x[rest], data.y[rest], 0), measured(gate), measured(tune))
    temperature = confidence_temperature(fit.logits(data.x[tune]), data.y[tune])
    for split, chosen in (("tune", tune), ("test", data.of("test"))):
        logits = fit.logits(data.x[chosen])
        right = logits.argmax(1) == data.y[chosen]
        error = calibration_error(softmax(logits / temperature).max(1), right)
        print(f"gate, {split:4}  domain accuracy {right.mean():.4f}  ECE {error:.4f}", end="")
        if split == "test":
            scores = [fit.memory.read(data.x[c], len(data.domains)).likeness for c in (chosen, data.of("test", inside=False))]
            print(f"  out-of-scope AUROC {area(*scores):.4f}", end="")
        print(flush=True)


def scores(data: Clinc) -> None:
    """Every out-of-scope score: AUROC on what was held out of the train split, which ranks them, and on the test split."""
    train = data.of("train")
    x, y = data.x[train], data.y[train]
    folds = []
    for learned, own, strange in held_out(x, y):
        found = score_all(x[learned], y[learned], x[np.concatenate([own, strange])])
        folds.append({name: (values[: len(own)], values[len(own) :]) for name, values in found.items()})
    inside, outside = data.of("test"), data.of("test", inside=False)
    tested = score_all(x, y, data.x[np.concatenate([inside, outside])])
    final = {name: (values[: len(inside)], values[len(inside) :]) for name, values in tested.items()}
    for fold, others in zip([*folds, final], [*([f for f in folds if f is not g] for g in folds), folds], strict=True):
        fold |= combined(fold, others)
    ranked = sorted(final, key=lambda name: -np.mean([area(*fold[name]) for fold in folds]))
    print(f"{'out-of-scope score':44}{'held-out pockets':>18}{'held-out domains':>18}{'test':>8}")
    for name in ranked:
        areas = [area(*fold[name]) for fold in folds]
        shown = np.mean(areas[:FOLDS]), np.mean(areas[FOLDS:]), area(*final[name])
        print(f"{name:44}{shown[0]:18.4f}{shown[1]:18.4f}{shown[2]:8.4f}", flush=True)


Fold = dict[str, tuple[np.ndarray, np.ndarray]]


def combined(fold: Fold, others: list[Fold]) -> Fold:
    """Two combinations of all scores: their sum in standard units, and logistic regression on held-out slices of `others`."""
    from sklearn.linear_model import LogisticRegression

    names = list(fold)
    inside = np.concatenate([np.stack([other[name][0] for name in names], 1) for other in others])
    outside = np.concatenate([np.stack([other[name][1] for name in names], 1) for other in others])
    middle, scale = inside.mean(0), inside.std(0)
    both = (np.concatenate([inside, outside]) - middle) / scale
    model = LogisticRegression(C=1.0, max_iter=500).fit(both, np.repeat([1, 0], [len(inside), len(outside)]))
    own = [(np.stack([fold[name][side] for name in names], 1) - middle) / scale for side in (0, 1)]
    return {
        "sum of all, in standard units": (own[0].sum(1), own[1].sum(1)),
        "all, trained on held-out slices": (model.decision_function(own[0]), model.decision_function(own[1])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("clinc150.jsonl"))
    parser.add_argument("--cache", type=Path, help="file that keeps the embeddings between runs")
    given = parser.parse_args()
    if not given.data.exists():
        raise SystemExit(f"{given.data} is not there: name CLINC150 (clinc/oos-eval) with --data, one JSON object a line")
    data = Clinc(given.data, given.cache)
    routing(data)
    scores(data)


if __name__ == "__main__":
    main()
