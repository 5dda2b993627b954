"""The stage on a tiny real library: measure, fit, resume, and follow a removed expert."""

import dataclasses

import numpy as np
import pytest
from models import tiny_llama

from moe_router.config import Config
from moe_router.data.records import Record, save_records
from moe_router.data.slices import slice_records
from moe_router.errors import LibraryError, WorkspaceError
from moe_router.experts.train import train_experts
from moe_router.gate.gate import CARD, WEIGHTS, Gate
from moe_router.gate.losses import LOSSES, load_losses
from moe_router.gate.train import expert_of_slice, train_gate
from moe_router.workspace import Workspace

TOPICS = ("bread oven flour baking", "invoice tax payment ledger", "anchor sail harbour wind")
SPLITS = ("train",) * 6 + ("gate", "gate", "tune", "test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workspace with three tiny experts, and its settings."""
    root = tmp_path_factory.mktemp("gate")
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
            "experts": {"rank": 2, "shared_rank": 2, "epochs": 1.0, "search_rates": False},
        }
    )
    slice_records(workspace, config)
    train_experts(workspace, config)
    return workspace, config


class Stages:
    """Records the stages that really ran."""

    def __init__(self):
        self.titles = []

    def stage(self, title, total=None):
        self.titles.append(title)

    def advance(self, amount, note=""): ...

    def note(self, text): ...


def run(workspace, config):
    stages = Stages()
    return train_gate(workspace, config, stages), stages.titles


def test_the_stage_from_losses_to_resume(trained):
    workspace, config = trained
    first, titles = run(workspace, config)
    assert len(titles) == 3
    losses = load_losses(workspace, "gate")
    assert losses.nats.shape == (18, 3) and np.isfinite(losses.nats).all()
    assert first.embedder_digest and first.figures["settings"]["mode"] == config.gate.mode

    again, titles = run(workspace, config)
    assert titles == [] and (again.weight == first.weight).all()

    other = dataclasses.replace(config, gate=dataclasses.replace(config.gate, mode="top1"))
    refitted, titles = run(workspace, other)
    assert titles == ["fit gate"] and refitted.mode == "top1"

    for name in (WEIGHTS, CARD):
        (workspace.experts / name).write_bytes(b"broken")
        mended, titles = run(workspace, config)
        assert titles == ["fit gate"] and (mended.weight == first.weight).all()

    (workspace.experts / LOSSES).write_bytes(b"broken")
    with pytest.raises(WorkspaceError, match="train-gate"):
        load_losses(workspace, "gate")


def test_a_removed_expert_takes_its_records_out_of_the_gate(trained):
    from moe_router.data.slices import Slices
    from moe_router.experts.library import Library

    workspace, config = trained
    before, _ = run(workspace, config)
    library = Library.load(workspace.experts)
    gone = library.names[1]
    left = library.remove(gone)
    with pytest.raises(LibraryError, match="train-gate"):
        Gate.load(workspace.experts, left)

    gate, _ = run(workspace, config)
    slices = Slices.load(workspace)
    assert gate.names == tuple(name for name in library.names if name != gone)
    assert expert_of_slice(left, slices).tolist() == [0, -1, 1]
    assert len(gate.memory.owners) == len(before.memory.owners) - slices.sizes[1]
    own = slices.embeddings[slices.labels == 1].astype(np.float16).astype(np.float32)
    assert not (own[:, None] == gate.memory.queries[None]).all(2).any()
