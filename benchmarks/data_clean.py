"""Speed of cleaning: near-duplicate groups, the whole of it, and comparing every pair; records a second as their number grows.

    python benchmarks/data_clean.py [--sizes 1000,5000,20000,80000] [--figure docs/figures/data-clean.png]

The records are generated: three in four prompts are of their own, the rest near-duplicates of an earlier one.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

from moe_router.data.clean import clean
from moe_router.data.cleaning.near import BANDS, ROWS, THRESHOLD, near_groups
from moe_router.data.cleaning.text import jaccard, shingles, words
from moe_router.data.turns import Item

PLAIN_MOST = 5_000
"""Every pair of more records than this takes minutes."""
METHODS = ("near-duplicates", "all rules", "every pair")


def prompts(count: int, seed: int = 0) -> list[str]:
    """Prompts of 12 to 40 words out of 20,000, a quarter of them an earlier one with a word more."""
    rng = random.Random(seed)
    made: list[str] = []
    for number in range(count):
        if made and rng.random() < 0.25:
            made.append(f"{made[rng.randrange(len(made))]} extra{number % 50}")
        else:
            made.append(" ".join(f"palavra{int(rng.paretovariate(0.6)) % 20_000}" for _ in range(rng.randint(12, 40))))
    return made


def every_pair(texts: list[str]) -> None:
    """The plain alternative: the exact similarity of all pairs."""
    sets = [shingles(words(text)) for text in texts]
    for at, one in enumerate(sets):
        for other in sets[:at]:
            jaccard(one, other) >= THRESHOLD  # noqa: B015


def measure(method: str, count: int) -> tuple[float, float]:
    """Seconds, and MiB of memory at the most over those before."""
    texts = prompts(count)
    items = [Item("generated.jsonl", line, text, f"Resposta número {line}: {text[:80]}") for line, text in enumerate(texts, 1)]
    near_groups(texts[:100])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    {"near-duplicates": lambda: near_groups(texts), "all rules": lambda: clean(items), "every pair": lambda: every_pair(texts)}[
        method
    ]()
    return time.perf_counter() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure_apart(method: str, count: int) -> tuple[float, float]:
    """The same in a process of its own, so that one method's memory is not another's."""
    out = subprocess.run([sys.executable, __file__, "--one", method, str(count)], check=True, capture_output=True, text=True)
    seconds, memory = out.stdout.split()
    return float(seconds), float(memory)


def draw(rows: list[tuple[str, int, float]], path: Path) -> None:
    """Seconds against records, both logarithmic, with a line of slope one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for method in METHODS:
        points = [(count, seconds) for name, count, seconds in rows if name == method]
        axes.loglog(*zip(*points, strict=True), "o-", label=method)
    first = next(row for row in rows if row[0] == METHODS[0])
    largest = max(count for _, count, _ in rows)
    axes.loglog([first[1], largest], [first[2], first[2] * largest / first[1]], ":", color="grey", label="linear")
    axes.set(xlabel="records", ylabel="seconds")
    axes.set_xticks(sorted({count for _, count, _ in rows}), [f"{count:,}" for count in sorted({row[1] for row in rows})])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,5000,20000,80000")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(*measure(given.one[0], int(given.one[1])))
        return
    print(f"index: {BANDS * ROWS * 2} bytes a record")
    print(f"{'':16}{'records':>10}{'seconds':>10}{'records/s':>12}{'MiB more':>10}")
    rows = []
    for method in METHODS:
        for count in map(int, given.sizes.split(",")):
            if method == "every pair" and count > PLAIN_MOST:
                continue
            seconds, memory = measure_apart(method, count)
            rows.append((method, count, seconds))
            print(f"{method:16}{count:>10,}{seconds:>10.2f}{count / seconds:>12,.0f}{memory:>10.0f}", flush=True)
    if given.figure:
        draw(rows, given.figure)


if __name__ == "__main__":
    main()
