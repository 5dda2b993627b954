"""Makes the bundles that the experiments read: tokens, splits, embeddings and slices of a dataset, in one file.

    python -m benchmarks.quality.data OUT.npz SOURCE… [--records 8000] [--slices 8 32] [--base embedded]

Records are cleaned and split as `moe-router prepare` does it and drawn evenly over the sources. Query embeddings keep
their strongest 192 directions (fitted on the training records) in float16, so that a bundle travels light.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from moe_router.config import Config, SliceConfig
from moe_router.data.clusters import balanced_kmeans, subjects, unit
from moe_router.data.embed import load_embedder, query_text
from moe_router.data.prepare import prepare
from moe_router.data.records import Record, load_records
from moe_router.experts.base import load_base
from moe_router.experts.encode import encode
from moe_router.workspace import Workspace

SPLITS = ("train", "gate", "tune", "test")
DIRECTIONS = 192
RESPONSE_CHARACTERS = 300
LONGEST = 512
"""Tokens of a record."""


def records_of(source: Path, limit: int, config: Config, seed: int) -> list[Record]:
    """At most `limit` records of one source, all splits in their own shares."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.find(folder)
        prepare(workspace, [source], config)
        found = [record for record in load_records(workspace.records) if record.split in SPLITS]
    chosen = np.random.default_rng(seed).permutation(len(found))[:limit]
    return [found[i] for i in sorted(chosen)]


def bundle(sources: list[Path], limit: int, slices: list[int], config: Config, seed: int) -> dict[str, np.ndarray]:
    """What an experiment needs; slices are labels of all records, the held-out ones by the nearest centroid."""
    share = [limit // len(sources)] * len(sources)
    parts = [records_of(source, count, config, seed) for source, count in zip(sources, share, strict=True)]
    records = [record for part in parts for record in part]
    base = load_base(config.base, "cpu")
    examples = encode(records, base, config.data.template, LONGEST)
    embedder = load_embedder(config.slice.embedder)
    queries = unit(embedder.encode([query_text(record.messages) for record in records]))
    responses = unit(embedder.encode([record.response[:RESPONSE_CHARACTERS] for record in records]))
    split = np.array([SPLITS.index(record.split) for record in records], np.int8)
    train = split == 0
    found = {}
    for k in slices:
        own = balanced_kmeans(subjects(queries[train], responses[train], k), SliceConfig(k=k, seed=seed))
        centers = unit(np.stack([queries[train][own == label].sum(0) for label in range(k)]))
        labels = (queries @ centers.T).argmax(1)
        labels[train] = own
        found[f"slices{k}"] = labels.astype(np.int16)
    directions = np.linalg.svd(queries[train], full_matrices=False)[2][:DIRECTIONS]
    return found | {
        "tokens": np.concatenate([np.array(example.tokens, np.uint16) for example in examples]),
        "lengths": np.array([len(example.tokens) for example in examples], np.int32),
        "prompts": np.array([example.prompt_tokens for example in examples], np.int32),
        "split": split,
        "queries": unit(queries @ directions.T).astype(np.float16),
        "source": np.repeat(np.arange(len(parts)), [len(part) for part in parts]).astype(np.int8),
        "bytes": np.array([len(record.response.encode()) for record in records], np.int32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--records", type=int, default=8000)
    parser.add_argument("--slices", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    config = Config().override({"base": {"model": given.base}})
    made = bundle(given.sources, given.records, given.slices, config, given.seed)
    np.savez(given.out, **made)
    counts = {name: int((made["split"] == i).sum()) for i, name in enumerate(SPLITS)}
    print(f"{given.out}: {counts}, {made['lengths'].sum() / 1e6:.2f} M tokens")


if __name__ == "__main__":
    main()
