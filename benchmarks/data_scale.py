"""Time and memory of `prepare` and of slicing as the number of records grows.

    python benchmarks/data_scale.py [--sizes 10000,30000,100000,200000] [--figure docs/figures/data-scale.png]

Records are generated: about 500 bytes, three in four prompts of their own, the rest near-duplicates of an earlier one, a
third of those with its answer too. `prepare` is the whole stage, from a .jsonl file to Parquet; `near-duplicates` its index
alone; `slice` is k-means, balancing and naming on vectors of 384 dimensions that are drawn at random around 40 centres,
for how long embedding takes is the embedder's affair. Each measurement runs in a process of its own with one thread;
seconds are the processor's, so that a busy machine does not change them much, and memory is the process's resident set at
its peak, interpreter, libraries and memory-mapped pages included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moe_router.config import Config, SliceConfig
from moe_router.data.cleaning.near import near_labels
from moe_router.data.prepare import prepare
from moe_router.data.records import Record
from moe_router.data.slices import cluster
from moe_router.workspace import Workspace

STAGES = ("prepare", "near-duplicates", "slice")
LARGE = 1_000_000
_RECENT = 10_000
"""Prompts that a near-duplicate may be one of: a bound, so that generating takes no memory."""


def pairs(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Prompts of 12 to 30 words out of 20,000, and answers of 20 to 50."""
    rng = random.Random(seed)
    recent: list[tuple[str, str]] = []

    def words(fewest: int, most: int) -> str:
        return " ".join(f"palavra{int(rng.paretovariate(0.6)) % 20_000}" for _ in range(rng.randint(fewest, most)))

    for number in range(count):
        if recent and rng.random() < 0.25:
            prompt, answer = rng.choice(recent)
            made = f"{prompt} extra{chr(97 + number % 26)}", answer if rng.random() < 1 / 3 else words(20, 50)
        else:
            made = words(12, 30), words(20, 50)
            if len(recent) < _RECENT:
                recent.append(made)
            else:
                recent[rng.randrange(_RECENT)] = made
        yield made


def run_prepare(count: int, folder: Path) -> None:
    prepare(Workspace(folder), [folder / "export.jsonl"], Config())


def run_near(count: int, _: Path) -> None:
    near_labels([prompt for prompt, _ in pairs(count)])


def run_slice(count: int, _: Path) -> None:
    draw = np.random.default_rng(0)
    subject = draw.integers(40, size=count)
    vectors = draw.normal(size=(40, 384)).astype(np.float32)[subject]
    for start in range(0, count, 1 << 16):
        part = vectors[start : start + (1 << 16)]
        part += 2 * draw.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    records = [
        Record(f"{at:016x}", f"question {at} about subject{subject[at]}", f"answer of subject{subject[at]}", split="train")
        for at in range(count)
    ]
    cluster(records, vectors, vectors, SliceConfig(k=16))


def measure(stage: str, count: int, folder: Path) -> tuple[float, float]:
    """Processor seconds of one thread, and the peak of resident memory in MiB."""
    started = time.process_time()
    {"prepare": run_prepare, "near-duplicates": run_near, "slice": run_slice}[stage](count, folder)
    return time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_apart(stage: str, count: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        if stage == "prepare":
            with (Path(folder) / "export.jsonl").open("w", encoding="utf-8") as file:
                for prompt, answer in pairs(count):
                    file.write(f"{json.dumps({'prompt': prompt, 'response': answer})}\n")
        command = [sys.executable, __file__, "--one", stage, str(count), folder]
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        out = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **single})
    seconds, memory = out.stdout.split()
    return float(seconds), float(memory)


def draw_figure(rows: list[tuple[str, int, float, float]], path: Path) -> None:
    """Seconds against records, both logarithmic, with a line of slope one; beside it the memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4), layout="constrained")
    sizes = sorted({count for _, count, _, _ in rows})
    for stage, mark in zip(STAGES, "os^", strict=True):
        own = [row for row in rows if row[0] == stage]
        if not own:
            continue
        left.loglog([row[1] for row in own], [row[2] for row in own], f"{mark}-", label=stage)
        right.plot([row[1] for row in own], [row[3] for row in own], f"{mark}-", label=stage)
    start = next(row for row in rows if row[0] == "prepare")
    left.loglog([start[1], sizes[-1]], [start[2], start[2] * sizes[-1] / start[1]], ":", color="grey", label="linear")
    left.set(xlabel="records", ylabel="processor seconds")
    right.set(xlabel="records", ylabel="MiB at the peak", ylim=(0, None))
    apart = [size for before, size in zip((0, *sizes), sizes, strict=False) if size > 1.3 * before]
    left.set_xticks(apart, [f"{size:,}" for size in apart], rotation=30)
    left.minorticks_off()
    right.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    right.tick_params(axis="x", rotation=30)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def extrapolated(own: list[tuple[str, int, float, float]]) -> str:
    """What the last step's slope makes of LARGE records."""
    (_, few, before, low), (_, many, after, high) = own[-2:]
    grown = (LARGE - many) / (many - few)
    return f"{after + grown * (after - before):,.0f} s, {high + grown * max(0.0, high - low):,.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="10000,30000,100000,200000")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(*measure(given.one[0], int(given.one[1]), Path(given.one[2])))
        return
    rows = []
    print(f"{'':16}{'records':>10}{'seconds':>10}{'records/s':>12}{'MiB':>8}")
    for stage in given.stages.split(","):
        for count in map(int, given.sizes.split(",")):
            seconds, memory = measure_apart(stage, count)
            rows.append((stage, count, seconds, memory))
            print(f"{stage:16}{count:>10,}{seconds:>10.1f}{count / seconds:>12,.0f}{memory:>8.0f}", flush=True)
        own = [row for row in rows if row[0] == stage]
        if len(own) > 1:
            print(f"{stage:16}{LARGE:>10,} extrapolated: {extrapolated(own)}", flush=True)
    if given.figure:
        draw_figure(rows, given.figure)


if __name__ == "__main__":
    main()
