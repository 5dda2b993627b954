"""The stage on a tiny real library: measure, fit, resume, and follow a removed expert."""

import dataclasses
import json

import numpy as np
import pytest
from gate_library import tiny_library

from moe_router.errors import InputError, LibraryError, WorkspaceError
from moe_router.experts.library import Library
from moe_router.gate.gate import CARD, WEIGHTS, Gate
from moe_router.gate.losses import LOSSES, load_losses
from moe_router.gate.train import expert_of_slice, train_gate
from moe_router.inference.routing import Selector
from moe_router.progress import Silent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workspace with three tiny experts, and its settings."""
    return tiny_library(tmp_path_factory.mktemp("gate"))


class Stages(Silent):
    """Records the stages that really ran."""

    def __init__(self):
        self.titles = []

    def stage(self, title, total=None):
        self.titles.append(title)


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
    assert set(gate.memory.owners) == set(gate.memory.pockets) == {0, 1}
    assert len(gate.memory.owners) < len(before.memory.owners)
    own = slices.embeddings[slices.labels == 1].astype(np.float16).astype(np.float32)
    assert not (own[:, None] == gate.memory.queries[None]).all(2).any()


def test_feedback_moves_what_was_reviewed_and_is_forgotten_without_it(trained, tmp_path):
    workspace, config = trained
    asked = "anchor sail question, who keeps the ledger?"
    before, _ = run(workspace, config)
    selector = Selector.load(Library.load(workspace.experts))
    right = min(before.names, key=lambda name: selector.route([asked], mode="soft")[0].weights.get(name, 0))
    strange = "flour baking question 999?"
    lines = [{"text": asked, "expert": right}, {"text": strange, "expert": None}, {"text": "not reviewed"}]
    file = tmp_path / "routes.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    train_gate(workspace, config, feedback=file)
    reviewed = Selector.load(Library.load(workspace.experts))
    (first,) = reviewed.gate.decide(reviewed.embedder.encode([asked]), "top1", abstain=False).weights
    assert reviewed.gate.names[first.argmax()] == right
    likeness = [s.gate.decide(s.embedder.encode([strange])).score[0] for s in (selector, reviewed)]
    assert likeness[1] < likeness[0]
    again, _ = run(workspace, config)
    assert again.inputs == before.inputs


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "is not JSON"), ("[1]", "no `text`"), ('{"text": "a", "expert": "nobody"}', "nobody"), ("", "no feedback")],
)
def test_feedback_that_cannot_be_used_is_refused_with_its_line(trained, tmp_path, line, said):
    workspace, config = trained
    file = tmp_path / "routes.jsonl"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        train_gate(workspace, config, feedback=file)
