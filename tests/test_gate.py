"""What a gate decides, and which files it refuses."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from gate_world import EXPERTS, World

from moe_router.errors import LibraryError
from moe_router.gate.calibrate import abstain_threshold, confidence_temperature, held_out_calibration_error
from moe_router.gate.features import Memory
from moe_router.gate.fit import fit_gate
from moe_router.gate.gate import CARD, WEIGHTS, Gate

NAMES = tuple(f"expert-{i}" for i in range(EXPERTS))


@pytest.fixture(scope="module")
def world():
    return World(1)


@pytest.fixture(scope="module")
def queries(world):
    return world.draw(800)


@pytest.fixture(scope="module")
def gate(world):
    train, measured, tune = world.draw(600), world.draw(300), world.draw(400)
    fit = fit_gate(Memory.of(train.embeddings, train.slices, 0), measured.measured, tune.measured)
    logits = fit.logits(tune.embeddings)
    return Gate(
        names=NAMES,
        library_digest="d",
        embedder="e",
        mode="top2",
        abstain_to="shared",
        weight=fit.weight,
        bias=fit.bias,
        evidence_scale=fit.evidence_scale,
        memory=fit.memory,
        mixing_temperature=1.0,
        confidence_temperature=confidence_temperature(logits, tune.measured.nats.argmin(1)),
        threshold=abstain_threshold(fit.memory.read(tune.embeddings, EXPERTS).likeness, 0.9),
        figures={"fit": fit.chosen},
    )


@pytest.mark.parametrize(("mode", "most"), [("top1", 1), ("top2", 2), ("soft", EXPERTS)])
def test_modes(gate, queries, mode, most):
    found = gate.decide(queries.embeddings, mode, abstain=False)
    assert found.weights.dtype == np.float32
    assert found.weights.sum(1) == pytest.approx(1)
    assert (found.weights > 0).sum(1).max() <= most
    assert (found.weights.argmax(1) == gate.logits(queries.embeddings).argmax(1)).all()


def test_abstains_on_foreign_queries_and_accepts_its_own(gate, world, queries):
    own, foreign = gate.decide(queries.embeddings), gate.decide(world.foreign(800))
    assert 0.85 < 1 - own.abstained.mean() < 0.95
    assert foreign.abstained.mean() > 0.95
    wins = (own.score[:, None] > foreign.score[None]).mean()  # the area under the ROC curve
    assert wins > 0.97
    assert (foreign.weights[foreign.abstained] == 0).all()
    assert not gate.decide(world.foreign(10), abstain=False).abstained.any()


def test_confidence_is_the_share_of_right_choices(gate, queries):
    best = queries.measured.nats.argmin(1)
    found = gate.decide(queries.embeddings, abstain=False)
    right = found.weights.argmax(1) == best
    assert found.confidence.mean() == pytest.approx(right.mean(), abs=0.08)
    assert held_out_calibration_error(gate.logits(queries.embeddings), best) < 0.1


def test_allowed_renormalises_over_what_is_left(gate, queries):
    every = gate.decide(queries.embeddings, "soft", abstain=False).weights
    some = gate.decide(queries.embeddings, "soft", allowed=[NAMES[2], NAMES[5]], abstain=False).weights
    expected = every[:, [2, 5]] / every[:, [2, 5]].sum(1, keepdims=True)
    assert some[:, [2, 5]] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert some.sum(1) == pytest.approx(1)
    assert gate.decide(queries.embeddings, allowed=[NAMES[2]], abstain=False).weights[:, 2] == pytest.approx(1)
    with pytest.raises(LibraryError, match="nobody"):
        gate.decide(queries.embeddings, allowed=["nobody"])
    with pytest.raises(LibraryError, match="none"):
        gate.decide(queries.embeddings, allowed=[])


def test_a_broken_query_abstains_and_leaves_the_others_alone(gate, queries):
    x = queries.embeddings[:4].copy()
    x[1, 0], x[2, 3] = np.nan, np.inf
    found, clean = gate.decide(x, abstain=False), gate.decide(queries.embeddings[:4], abstain=False)
    assert found.abstained.tolist() == [False, True, True, False]
    assert (found.weights[[1, 2]] == 0).all() and (found.confidence[[1, 2]] == 0).all()
    assert found.weights[[0, 3]] == pytest.approx(clean.weights[[0, 3]])


def test_bad_arguments(gate, queries):
    with pytest.raises(LibraryError, match="top0"):
        gate.decide(queries.embeddings, "top0")
    with pytest.raises(LibraryError, match="dimensions"):
        gate.decide(queries.embeddings[:, :5])
    assert gate.decide(queries.embeddings[:0]).weights.shape == (0, EXPERTS)


def test_a_query_gets_the_same_route_alone_and_in_a_batch(gate, queries):
    together = gate.decide(queries.embeddings[:50])
    for i in range(50):
        alone = gate.decide(queries.embeddings[i : i + 1])
        assert alone.weights[0] == pytest.approx(together.weights[i], abs=1e-5)
        assert alone.abstained[0] == together.abstained[i]


def test_the_threshold_accepts_the_record_it_was_taken_from():
    scores = np.array([0.2, 0.4, 0.6, 0.8])
    assert (scores >= abstain_threshold(scores, 0.75)).sum() >= 3
    assert abstain_threshold(scores, 1.0) == -1.0


def test_save_and_load_decide_alike(gate, queries, tmp_path):
    gate.save(tmp_path)
    found = Gate.load(tmp_path, SimpleNamespace(names=NAMES, digest="d"))
    assert (found.decide(queries.embeddings).weights == gate.decide(queries.embeddings).weights).all()
    assert found.figures == gate.figures and found.dimension == gate.dimension


@pytest.mark.parametrize("coverage", [1.0, 0.5])
def test_any_coverage_can_be_saved(gate, tmp_path, coverage):
    replace(gate, threshold=abstain_threshold(np.array([0.3, 0.5]), coverage)).save(tmp_path)
    assert np.isfinite(Gate.load(tmp_path).threshold)


def _truncate(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-7])


def _flip(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(data))


def _edit(**changes):
    def edit(folder):
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        (folder / CARD).write_text(json.dumps(card | changes), encoding="utf-8")

    return edit


DAMAGE = {
    "truncated": _truncate,
    "one bit": _flip,
    "weights gone": lambda folder: (folder / WEIGHTS).unlink(),
    "card gone": lambda folder: (folder / CARD).unlink(),
    "card cut": lambda folder: (folder / CARD).write_text('{"format": ', encoding="utf-8"),
    "card is a list": lambda folder: (folder / CARD).write_text("[]", encoding="utf-8"),
    "another format": _edit(format=9),
    "one name less": _edit(names=list(NAMES[1:])),
    "other dimension": _edit(dimension=3),
    "threshold is NaN": _edit(threshold=float("nan")),
    "threshold is text": _edit(threshold="high"),
    "temperature is zero": _edit(mixing_temperature=0),
    "unknown mode": _edit(mode="best"),
    "unknown key": _edit(surprise=1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_gate_is_refused_on_one_line_with_the_remedy(gate, tmp_path, damage):
    gate.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(LibraryError, match="train-gate") as caught:
        Gate.load(tmp_path)
    assert "\n" not in str(caught.value)


def _broken(array):
    found = array.copy()
    found.flat[0] = np.nan
    return found


NOT_FINITE = {
    "weight": lambda gate: {"weight": _broken(gate.weight)},
    "bias": lambda gate: {"bias": _broken(gate.bias)},
    "memory": lambda gate: {"memory": replace(gate.memory, queries=_broken(gate.memory.queries))},
    "claims": lambda gate: {"memory": replace(gate.memory, coefficients=_broken(gate.memory.coefficients))},
}


@pytest.mark.parametrize("changes", NOT_FINITE.values(), ids=NOT_FINITE)
def test_a_gate_that_is_not_finite_is_refused(gate, tmp_path, changes):
    replace(gate, **changes(gate)).save(tmp_path)
    with pytest.raises(LibraryError, match=r"NaN.*train-gate"):
        Gate.load(tmp_path)


def test_a_gate_that_remembers_an_unknown_expert_is_refused(gate, tmp_path):
    replace(gate, memory=replace(gate.memory, owners=gate.memory.owners + 1)).save(tmp_path)
    with pytest.raises(LibraryError, match=r"not there.*train-gate"):
        Gate.load(tmp_path)


@pytest.mark.parametrize("library", [{"names": NAMES[::-1], "digest": "d"}, {"names": NAMES, "digest": "other"}])
def test_a_gate_of_other_experts_is_refused(gate, tmp_path, library):
    gate.save(tmp_path)
    with pytest.raises(LibraryError, match="train-gate"):
        Gate.load(tmp_path, SimpleNamespace(**library))
