"""Three slices of a made-up company, and the plan of a tiny library on them."""

import numpy as np
from models import tiny_llama

from moe_router.config import Config
from moe_router.data.records import Record
from moe_router.experts.train import Plan, Split

TOPICS = ("bread oven flour baking", "invoice tax payment ledger", "anchor sail harbour wind")
SPLITS = ("train",) * 6 + ("gate", "gate", "tune", "test")
NAMES = ("bakery", "books", "boats")
SETTINGS = {
    "rank": 4,
    "shared_rank": 2,
    "steps": 12,
    "search_rates": False,
    "learning_rate": 2e-2,
    "shared_learning_rate": 1e-2,
}


def records():
    """90 records, a third of each topic in every split."""
    made = []
    for i in range(90):
        words = TOPICS[i % 3].split()
        prompt = f"{words[i % 4]} {words[(i + 1) % 4]} question {i}?"
        made.append(Record(f"r{i}", prompt, f"{words[0]} é {i % 5}", split=SPLITS[i // 3 % 10], group=f"g{i}"))
    return made


def split(name):
    """The records of a split, labelled by topic."""
    chosen = [(r, i % 3) for i, r in enumerate(records()) if r.split == name]
    return Split([r for r, _ in chosen], np.array([label for _, label in chosen]), np.zeros((len(chosen), 2), np.float32))


def settings(folder):
    """The settings, with a tiny Llama saved to `folder` as base."""
    folder = tiny_llama(folder)
    return Config().override(
        {
            "base": {"model": str(folder), "quantization": "none", "dtype": "float32"},
            "slice": {"k": 3, "min_records": 5},
            "experts": SETTINGS,
        }
    )


def plan(config, names=NAMES, mode="shared"):
    """Train the experts `names` in `mode`."""
    config = config.override({"experts": {"mode": mode}})
    train, tune = split("train"), split("tune")
    keep = [NAMES.index(name) for name in names]
    parts = []
    for part in (train, tune):
        rows = [i for i, label in enumerate(part.labels) if label in keep]
        labels = np.array([keep.index(part.labels[i]) for i in rows])
        parts.append(Split([part.records[i] for i in rows], labels, part.embeddings[rows]))
    return Plan(tuple(names), *parts, config, "data")


def close(one, other, tolerance=2e-4):
    """Whether two tensors differ by less than a share of the second's largest number."""
    return float((one - other).abs().max() / other.abs().max()) < tolerance
