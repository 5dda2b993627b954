"""Experts that come and go, callers' wishes, and traffic that changes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from gate_world import EXPERTS, World
from test_gate import NAMES, gate, queries, world  # noqa: F401 - fixtures

from moe_router.errors import LibraryError
from moe_router.gate.drift import drift, reference
from moe_router.gate.gate import Gate
from moe_router.gate.live import add_expert, remove_expert
from moe_router.inference.routing import Selector


def library(names):
    return SimpleNamespace(names=tuple(names), digest="edited")


@pytest.fixture
def strange():
    """Queries of a subject that no expert knows."""
    random = np.random.default_rng(9)
    middle = random.normal(size=64)
    x = middle / np.linalg.norm(middle) + 0.05 * random.normal(size=(300, 64))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_a_new_expert_takes_its_own_queries_and_leaves_the_others_alone(gate, queries, strange):  # noqa: F811
    grown = add_expert(gate, library([*NAMES, "new"]), strange[:200])
    mine, theirs = grown.decide(strange[200:], "top1"), grown.decide(queries.embeddings, "top1")
    assert gate.decide(strange[200:]).abstained.mean() > 0.9
    assert mine.abstained.mean() < 0.3 and (mine.weights.argmax(1) == EXPERTS)[~mine.abstained].all()
    assert (theirs.weights.argmax(1) == EXPERTS).mean() < 0.01
    before, after = gate.logits(queries.embeddings), grown.logits(queries.embeddings)
    assert after[:, :EXPERTS] == pytest.approx(before, abs=1e-3)
    soft, wide = (g.decide(queries.embeddings, "soft", abstain=False).weights for g in (gate, grown))
    assert wide[:, :EXPERTS] / wide[:, :EXPERTS].sum(1, keepdims=True) == pytest.approx(soft, abs=1e-3)


def test_a_removed_expert_is_gone_and_the_others_stay_as_they_were(gate, queries):  # noqa: F811
    left = [name for name in NAMES if name != NAMES[3]]
    small = remove_expert(gate, library(left), NAMES[3])
    others = np.delete(gate.logits(queries.embeddings), 3, axis=1)
    assert small.logits(queries.embeddings) == pytest.approx(others, abs=1e-3)
    own = queries.embeddings[(queries.slices == 3) & (queries.best == 3)]
    assert small.decide(own).abstained.mean() > gate.decide(own).abstained.mean() + 0.5


def test_a_gate_that_grew_or_shrank_can_be_saved(gate, strange, tmp_path):  # noqa: F811
    for changed in (
        add_expert(gate, library([*NAMES, "new"]), strange),
        remove_expert(gate, library(NAMES[1:]), NAMES[0]),
    ):
        changed.save(tmp_path)
        assert Gate.load(tmp_path, library(changed.names)).names == changed.names


def test_adding_then_removing_gives_the_gate_back(gate, queries, strange):  # noqa: F811
    back = remove_expert(add_expert(gate, library([*NAMES, "new"]), strange), library(NAMES), "new")
    assert back.decide(queries.embeddings).weights == pytest.approx(gate.decide(queries.embeddings).weights, abs=1e-3)


def test_other_libraries_are_refused(gate, strange):  # noqa: F811
    with pytest.raises(LibraryError, match="train-gate"):
        add_expert(gate, library(["new", *NAMES]), strange)
    with pytest.raises(LibraryError, match="train-gate"):
        remove_expert(gate, library(NAMES), NAMES[0])
    with pytest.raises(LibraryError, match="dimensions"):
        add_expert(gate, library([*NAMES, "new"]), strange[:, :5])


def test_every_query_may_have_its_own_mode_and_a_bound(gate, queries):  # noqa: F811
    x = queries.embeddings[:4]
    found = gate.decide(x, ["top1", "top3", "soft", "top2"], abstain=False).weights
    assert (found > 0).sum(1).tolist() == [1, 3, EXPERTS, 2]
    for row, mode in zip(found, ["top1", "top3", "soft", "top2"], strict=True):
        alone = gate.decide(x, mode, abstain=False).weights
        assert (np.abs(alone - row).max(1) < 1e-6).any()
    assert ((gate.decide(x, "soft", max_experts=2, abstain=False).weights > 0).sum(1) == 2).all()
    bounded = replace(gate, max_experts=1)
    assert ((bounded.decide(x, "soft", abstain=False).weights > 0).sum(1) == 1).all()
    with pytest.raises(LibraryError, match="3 modes for 4"):
        gate.decide(x, ["top1"] * 3)
    with pytest.raises(LibraryError, match="max_experts"):
        gate.decide(x, max_experts=-1)


def test_what_only_a_forbidden_expert_knows_is_abstained_on(gate, queries):  # noqa: F811
    own = queries.embeddings[(queries.slices == 3) & (queries.best == 3)]
    free, bound = gate.decide(own), gate.decide(own, allowed=[NAMES[0], NAMES[6]])
    assert bound.abstained.mean() > free.abstained.mean() + 0.5
    assert (bound.weights[:, [1, 2, 3, 4, 5, 7]] == 0).all()
    assert bound.confidence.mean() < 0.3 < free.confidence.mean()


def test_drift_tells_changed_traffic_from_chance(gate, world, queries):  # noqa: F811
    known = replace(gate, figures={"traffic": reference(gate, queries.embeddings)})
    same, other = drift(known, world.draw(300).embeddings), drift(known, world.foreign(300))
    assert not same.changed and other.changed
    assert other.stability > same.stability and other.abstained > same.abstained
    assert sum(same.first.values()) == pytest.approx(1)
    with pytest.raises(LibraryError, match="train-gate"):
        drift(gate, queries.embeddings)


class Fixed:
    """An embedder whose vectors are given: routing is tested here, not embedding."""

    id, digest, dimension = "fixed", "", 64

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, texts):
        return self.vectors[: len(texts)]


@pytest.mark.parametrize(("abstain_to", "shared"), [("shared", True), ("base", False), ("message", False)])
def test_abstaining_falls_back_as_the_gate_was_told(gate, abstain_to, shared):  # noqa: F811
    told = replace(gate, abstain_to=abstain_to, abstain_message="Ask the front desk.")
    found = Selector(told, Fixed(World(5).foreign(6)), has_shared=True).route(["?"] * 6)
    assert {route.abstained for route in found} == {True}
    assert {route.shared for route in found} == {shared}
    assert {route.message for route in found} == {"Ask the front desk." if abstain_to == "message" else ""}
