"""Speed and memory of the readers, each kind of file in a process of its own, as the file grows.

    python benchmarks/data_read.py [--sizes 40,160] [--kinds jsonl,jsonl.gz,json,csv,txt,parquet]

The records are generated: prompts of 30 words and responses of 60. Sizes are MiB before compression.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from moe_router.config import DataConfig
from moe_router.data.readers import read_file

KINDS = ("jsonl", "jsonl.gz", "json", "csv", "txt", "parquet")
BLOCK = 2_000
GROUP_ROWS = 100_000


def block() -> list[tuple[str, str]]:
    """Prompts and responses."""
    rng = random.Random(0)
    words = ["onde", "está", "a", "minha", "encomenda", "não", "chegou", "café", "às", "três", "quando", "é", "que", "volta"]
    return [(" ".join(rng.choices(words, k=30)), " ".join(rng.choices(words, k=60))) for _ in range(BLOCK)]


def text(kind: str) -> tuple[str, Iterator[str], str]:
    """What a file of that kind begins with, its blocks without end, and what it ends with."""
    pairs = block()
    rows = [json.dumps({"prompt": prompt, "response": response}, ensure_ascii=False) for prompt, response in pairs]
    made = {
        "json": ("[{}", "".join(f",{row}" for row in rows), "]"),
        "csv": ("prompt,response\n", "".join(f'"{prompt}","{response}"\n' for prompt, response in pairs), ""),
        "txt": ("", "".join(f"User: {prompt}\nAssistant: {response}\n" for prompt, response in pairs), ""),
    }
    start, body, end = made.get(kind, ("", "".join(f"{row}\n" for row in rows), ""))
    return start, iter(lambda: body, None), end


def generate(path: Path, kind: str, mebibytes: int) -> None:
    """Write a file of that kind."""
    if kind == "parquet":
        parquet(path, mebibytes)
        return
    start, blocks, end = text(kind)
    with gzip.open(path, "wt", encoding="utf-8") if kind.endswith(".gz") else path.open("w", encoding="utf-8") as file:
        size = file.write(start)
        while size < mebibytes << 20:
            body = next(blocks)
            file.write(body)
            size += len(body.encode())
        file.write(end)


def parquet(path: Path, mebibytes: int) -> None:
    """Row groups of GROUP_ROWS, neither compressed nor with a dictionary."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": prompt, "response": response} for prompt, response in block()]
    group = pa.concat_tables([pa.Table.from_pylist(rows)] * (GROUP_ROWS // BLOCK))
    with pq.ParquetWriter(path, group.schema, compression="none", use_dictionary=False) as writer:
        while path.stat().st_size < mebibytes << 20:
            writer.write_table(group)


def measure(path: Path) -> tuple[int, float, float]:
    """Records, seconds, and MiB resident at the peak."""
    started = time.perf_counter()
    records = sum(not item.rule for item in read_file(path, DataConfig()))
    return records, time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="40,160")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only)))
        return
    print("| kind | MiB | records | records/s | MiB resident |\n| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kinds.split(","):
            for size in map(int, given.sizes.split(",")):
                path = Path(folder) / f"generated.{kind}"
                generate(path, kind, size)
                command = [sys.executable, __file__, "--only", str(path)]
                records, seconds, peak = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
                print(f"| .{kind} | {size:,} | {records:,} | {records / seconds:,.0f} | {peak:.0f} |", flush=True)
                path.unlink()


if __name__ == "__main__":
    main()
