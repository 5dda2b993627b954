"""What the losses say by slice, of gate and experts, and of the routes."""

import numpy as np
import pytest
from report_fake import RECORDS, SLICES, fake, losses_of

from moe_router.gate.gate import Decisions
from moe_router.report import analysis
from moe_router.report.perplexity import perplexity


def decided(weights, confidence):
    return Decisions(weights, confidence, np.zeros(len(weights), dtype=bool), np.ones(len(weights)))


def routing(weights, confidence, alone, tokens=None, labels=None):
    count = len(weights)
    tokens = np.ones(count) if tokens is None else tokens
    labels = np.zeros(count, dtype=int) if labels is None else labels
    names = [f"e{i}" for i in range(weights.shape[1])]
    return analysis.routing(names, labels, decided(weights, confidence), alone, alone.min(1), tokens)


def test_slices_add_up_to_the_whole():
    losses, tokens = losses_of()
    labels = np.arange(RECORDS) % 3
    rows = analysis.slice_rows(SLICES, labels, losses, tokens, 100, 0)
    assert sum(row.records for row in rows) == RECORDS
    whole = sum(np.log(row.perplexity["cbtm"]) * row.target_tokens for row in rows) / tokens.sum()
    assert np.exp(whole) == pytest.approx(perplexity(losses["cbtm"], tokens))


def test_a_slice_without_test_records_has_no_row():
    losses, tokens = losses_of()
    rows = analysis.slice_rows((*SLICES, "empty"), np.zeros(RECORDS, dtype=int), losses, tokens, 50, 0)
    assert [row.name for row in rows] == [SLICES[0]]


def test_a_slice_that_gets_worse_is_seen_in_the_row_of_that_slice():
    losses, tokens = losses_of(("dense_active", "gate_top2"))
    labels = np.arange(RECORDS) % 3
    losses["gate_top2"] = losses["dense_active"] * np.where(labels == 1, 1.05, 0.95)
    outcomes = [row.against.outcome for row in analysis.slice_rows(SLICES, labels, losses, tokens, 300, 0)]
    assert outcomes == ["better", "worse", "better"]


def test_regret_needs_all_its_arms():
    losses, tokens = losses_of(("gate_top2", "dense_active"))
    assert analysis.regret(losses, tokens, 50, 0) is None
    assert analysis.regret(losses | {"oracle": losses["gate_top2"]}, tokens, 50, 0).gate == 0


def test_even_use_is_balanced_and_one_expert_for_all_is_not():
    alone = np.ones((6, 3))
    even = routing(np.eye(3)[[0, 1, 2, 0, 1, 2]], np.ones(6), alone)
    single = routing(np.eye(3)[[1] * 6], np.ones(6), alone)
    assert even.balance == pytest.approx(1)
    assert single.balance == pytest.approx(1 / 3)
    assert single.weight == (0.0, 1.0, 0.0) == single.first


def test_honest_confidence_has_no_calibration_error():
    alone = np.array([[1.0, 2.0]] * 8 + [[2.0, 1.0]] * 2)
    found = routing(np.eye(2)[[0] * 10], np.full(10, 0.8), alone)
    assert found.hits == 0.8
    assert found.calibration_error == pytest.approx(0)
    assert found.calibration == ((pytest.approx(0.8), 0.8, 10),)


def test_risk_starts_with_the_most_confident_and_ends_with_all():
    alone = np.linspace(1, 3, 40)[:, None] * np.ones((40, 2))
    found = routing(np.full((40, 2), 0.5), np.linspace(0.9, 0.1, 40), alone)
    shares, risks = zip(*found.risk, strict=True)
    assert list(risks) == sorted(risks)
    assert shares[-1] == 1
    assert risks[-1] == pytest.approx(perplexity(alone[:, 0], np.ones(40)))


def test_the_table_of_experts_holds_every_slice():
    alone = np.array([[1.0, 2.0], [4.0, 3.0]])
    found = routing(np.eye(2), np.ones(2), alone, labels=np.array([0, 1]))
    assert np.log(found.perplexity) == pytest.approx(alone)


def test_choices_are_counted_by_slice_and_by_best_expert():
    alone = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    found = routing(np.eye(3)[[0, 1, 2, 2]], np.ones(4), alone, labels=np.array([0, 0, 2, 2]))
    assert found.chosen_by_slice == ((1, 1, 0), (0, 0, 0), (0, 0, 2))
    assert found.chosen_by_best == ((1, 1, 0), (0, 0, 1), (0, 0, 1))
    assert sum(map(sum, found.chosen_by_slice)) == 4


def test_experts_are_told_on_their_own_slice():
    assert [row.name for row in fake().experts] == list(SLICES)
    assert all(row.after < row.before for row in fake().experts)
