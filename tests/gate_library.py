"""A workspace with three experts on a tiny real base, for tests of the gate's stage and commands."""

from __future__ import annotations

from pathlib import Path

from models import tiny_llama

from moe_router.config import Config
from moe_router.data.records import Record, save_records
from moe_router.data.slices import slice_records
from moe_router.experts.train import train_experts
from moe_router.workspace import Workspace

TOPICS = ("bread oven flour baking", "invoice tax payment ledger", "anchor sail harbour wind")
SPLITS = ("train",) * 6 + ("gate", "gate", "tune", "test")


def tiny_library(root: Path, mode: str = "shared") -> tuple[Workspace, Config]:
    """Ninety records of three topics, sliced and trained in a few seconds; the gate is left to the test."""
    records = []
    for i in range(90):
        words = TOPICS[i % 3].split()
        prompt = f"{words[i % 4]} {words[(i + 1) % 4]} question {i}?"
        records.append(Record(f"r{i}", prompt, f"{words[0]} é {i % 5}", split=SPLITS[i // 3 % 10], group=f"g{i}"))
    workspace = Workspace(root)
    save_records(workspace.records, records)
    config = Config().override(
        {
            "base": {"model": str(tiny_llama(root / "base")), "quantization": "none", "dtype": "float32"},
            "slice": {"k": 3, "min_records": 5},
            "experts": {"mode": mode, "rank": 2, "shared_rank": 2, "epochs": 1.0, "search_rates": False},
        }
    )
    slice_records(workspace, config)
    train_experts(workspace, config)
    return workspace, config
