"""How well slices find known groups, against plain k-means on the same embeddings; and what each number of slices gains.

    python benchmarks/data_slices.py dynamics_erp.jsonl --by group [--records 4000] [--k 5,8,16] [--seeds 10]
    python benchmarks/data_slices.py a.jsonl b.jsonl --curve [--records 4000]

V-measure (Rosenberg & Hirschberg 2007) of the training records' slices against a field of the records. Plain k-means is
scikit-learn's, with as many starts, on the embedded prompts and on prompts and answers together, which slices see too.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from moe_router.config import Config
from moe_router.data.cells import make_cells
from moe_router.data.choose import choose_k
from moe_router.data.clusters import STARTS, unit
from moe_router.data.embed import embedder_digest
from moe_router.data.embeddings import embed_records
from moe_router.data.prepare import prepare
from moe_router.data.records import Record, load_records
from moe_router.experts.probe import AdapterProbe
from moe_router.progress import Silent
from moe_router.workspace import Workspace, digest_file, digest_json


class Told(Silent):
    """Prints how far each k has come."""

    def advance(self, amount: float, note: str = "") -> None:
        if note.startswith("k ="):
            print(note, flush=True)


def embedded(sources: list[Path], config: Config, folder: Path) -> tuple[list[Record], np.ndarray, np.ndarray]:
    """Records, embedded queries and embedded training answers; kept in the folder for another run."""
    workspace = Workspace.find(folder)
    prepare(workspace, sources, config)
    records = load_records(workspace.records)
    source = digest_json([digest_file(workspace.records), embedder_digest(config.slice.embedder)])
    return records, *embed_records(workspace, records, config.slice.embedder, source, Silent())


def compare(records: list[Record], queries: np.ndarray, answers: np.ndarray, config: Config, by: str, seeds: int) -> None:
    """Print V-measures at one k, the mean over seeds and their standard deviation."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import v_measure_score

    train = np.array([record.split == "train" for record in records])
    truth = [record.meta[by] for record in records if record.split == "train"]
    both = unit(queries[train] + answers)
    rows = []
    for seed in range(seeds):
        settings = replace(config.slice, seed=seed, outliers=0.0)
        slices = make_cells(records, queries, answers, settings)[1]
        plain = [KMeans(settings.k, n_init=STARTS, random_state=seed).fit(one).labels_ for one in (queries[train], both)]
        share = np.bincount(slices).max() * settings.k / len(slices)
        rows.append([v_measure_score(truth, labels) for labels in (slices, *plain)] + [share])
    ours, prompts, pairs, ratio = (f"{m:.3f} ± {s:.3f}" for m, s in zip(np.mean(rows, 0), np.std(rows, 0), strict=True))
    print(
        f"k = {config.slice.k}: slices {ours}, plain k-means on prompts {prompts}, on prompts and answers {pairs}; "
        f"largest slice {ratio} times the mean; {len(truth):,} records, {len(set(truth))} groups, {seeds} seeds",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--by", default="", help="field with the known groups")
    parser.add_argument("--k", default="5,8,16")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--records", type=int, default=4000, help="sampled from the sources (0: all)")
    parser.add_argument("--curve", action="store_true", help="what each number of slices gains")
    parser.add_argument("--probe-records", type=int, default=600)
    parser.add_argument("--folder", type=Path, help="keeps records and embeddings for another run")
    given = parser.parse_args()
    config = Config().override({"data": {"limit": given.records}, "slice": {"probe_records": given.probe_records}})
    with tempfile.TemporaryDirectory() as temporary:
        records, queries, answers = embedded(given.sources, config, given.folder or Path(temporary))
    if given.by:
        for k in map(int, given.k.split(",")):
            compare(records, queries, answers, config.override({"slice": {"k": k}}), given.by, given.seeds)
    if given.curve:
        settings = replace(config.slice, k=0)
        for tried in choose_k(records, queries, answers, settings, AdapterProbe(config), Told())[1]:
            mark = "  <- chosen" if tried.chosen else ""
            print(f"k = {tried.k:2}: perplexity {tried.perplexity:.2f}, gain {tried.gain:+.1%} ± {tried.error:.1%}{mark}")


if __name__ == "__main__":
    main()
