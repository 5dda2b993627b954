"""How decode and prefill slow down as experts or ranks grow: wide and gathered adapters against our own base, in one run.

    PYTHONPATH=. python benchmarks/growth.py [--seconds 150] [--out growth.jsonl] [--plain]
    PYTHONPATH=. python benchmarks/growth.py --tiny                      # a small shape, for any machine

Llama-2-7B's shape with random weights in bf16, as the engine holds resident NF4 weights; 1 to 64 experts of rank 16, then
8 experts of rank 8 to 64, on all linear layers, a different one in every row. Decode replays CUDA graphs at 32 rows; prefill
reads 8 x 512 tokens. `--plain` leaves the Triton kernels out. Every case prints a line of JSON, and a table with the number
of experts from which on the gathered form is the faster one ends the run.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from inference import RANK, Ours, Report, Shape, attach, free, llama_2_7b, make_base, make_plain, nothing, one_hot, tiny

from moe_router.experts.base import Base
from moe_router.inference.fused import unfuse

EXPERTS = (1, 2, 4, 8, 16, 32, 64)
RANKS = (8, 32, 64)
"""Of eight experts; 16 is in the first row."""
FORMS = ("gathered", "wide")


@dataclass
class Kept(Report):
    """Lines go to a file too."""

    out: Path | None = None

    def say(self, **line: Any) -> None:
        super().say(**line)
        if self.out:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def table(self) -> None:
        """Shares of our own base's rate, and the crossover."""
        rates = {
            (r["experts"], r["rank"], r["form"], r["kind"]): r for r in self.lines if "tokens_per_s" in r and "experts" in r
        }
        sizes = sorted({key[:2] for key in rates if key[0]}, key=lambda size: (size[1] != RANK, size))
        print(f"\n{'':16} {'decode':^32} {'prefill':^32}")
        print(f"{'experts':>7} {'rank':>4} {'slots':>5} " + f"{'gathered':>15} {'wide':>15} " * 2)
        for size in sizes:
            cells = [self._cell(rates, size, form, kind) for kind in ("decode", "prefill") for form in FORMS]
            print(f"{size[0]:7} {size[1]:4} {size[0] * size[1]:5}  " + " ".join(f"{cell:>15}" for cell in cells))
        for kind in ("decode", "prefill"):
            base = rates.get((0, 0, "base", kind))
            better = [
                e for e, r in sizes if r == RANK and self._rate(rates, e, "gathered", kind) > self._rate(rates, e, "wide", kind)
            ]
            from_on = next((e for e in better if all(k in better for k, r in sizes if r == RANK and k >= e)), None)
            found = f"gathered is faster from {from_on} experts on" if from_on else "wide is faster everywhere"
            print(f"{kind}: own base {base['tokens_per_s'] if base else 0:,.0f} tokens/s; {found}")

    def _rate(self, rates: dict, experts: int, form: str, kind: str) -> float:
        line = rates.get((experts, RANK, form, kind))
        return line["tokens_per_s"] if line else 0.0

    def _cell(self, rates: dict, size: tuple[int, int], form: str, kind: str) -> str:
        line, base = rates.get((*size, form, kind)), rates.get((0, 0, "base", kind))
        if not line or not base:
            return "-"
        return f"{line['tokens_per_s']:,.0f} {line['tokens_per_s'] / base['tokens_per_s']:6.1%}"


def measure(report: Report, shape: Shape, base: Base, experts: int, rank: int, form: str, fused: bool) -> None:
    """Decode of all slots and prefill with these experts; form `base` routes no row to any."""
    about = {
        "weights": "resident",
        "form": form,
        "experts": 0 if form == "base" else experts,
        "rank": 0 if form == "base" else rank,
    }
    with report.case("growth", **about), attach(base, experts, rank) as model:
        ours = Ours(shape, model, "auto" if form == "base" else form, fused)
        mixtures = nothing if form == "base" else one_hot
        work = ours.decode(ours.graphs, shape.slots, mixtures(model, shape.slots))
        report.rate(
            "growth", shape.slots * shape.steps, work, shape.repeats, shape.steps, **about, kind="decode", what="decode"
        )
        rows, length = shape.prefill
        work = ours.prefill(mixtures(model, rows))
        report.rate("growth", rows * length, work, shape.repeats, **about, kind="prefill", what="prefill")
        if ours.graphs.failure:
            report.say(case="graphs failed", **about, error=ours.graphs.failure)
    unfuse(base.model)
    free()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--out", type=Path, help="append every line of JSON to this file too")
    parser.add_argument("--plain", action="store_true", help="without the Triton kernels")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    report = Kept(time.monotonic() + options.seconds, out=options.out)
    shape = tiny() if options.tiny else llama_2_7b()
    sizes = [(e, RANK) for e in EXPERTS] + [(8, r) for r in RANKS]
    try:
        base = make_base(make_plain(shape.config, torch.bfloat16), True)
        measure(report, shape, base, 8, RANK, "base", not options.plain)
        for experts, rank in sorted(sizes, key=lambda size: size[0] not in (8, 64)):  # the ends first, should time run out
            for form in FORMS:
                measure(report, shape, base, experts, rank, form, not options.plain)
    except TimeoutError:
        report.say(case="time is up", seconds=options.seconds)
    finally:
        report.table()


if __name__ == "__main__":
    main()
