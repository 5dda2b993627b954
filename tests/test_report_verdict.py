"""The verdict's words, won and lost."""

import pytest

from moe_router.report.arms import ARMS, Arm, Comparison
from moe_router.report.verdict import judge, p_value, sentence


def arm(name, perplexity=10.0, flops=1e6):
    return Arm(name, ARMS[name].label, perplexity, (perplexity * 0.95, perplexity * 1.05), 2.3, 1000, flops, flops, 1e9, 10, 10)


def against(rival, relative, half=0.01, p=0.002):
    return Comparison("gate_top2", rival, relative, (relative - half, relative + half), p)


def verdict(*rows, **flops):
    arms = [arm("gate_top2", 9.0, flops.get("gate_top2", 1e6))]
    arms += [arm(row.rival, 9.0 / (1 + row.relative), flops.get(row.rival, 1e6)) for row in rows]
    return judge(arms, rows)


def test_a_clear_win_says_use_the_mixture():
    found = verdict(against("base", -0.8), against("dense_rank", -0.1), against("dense_active", -0.043))
    assert found.use == "mixture"
    assert found.headline.startswith("Use the mixture here: its perplexity is 4.3 % lower")
    assert "at equal FLOPs per token" in found.headline


def test_a_loss_says_use_the_dense_adapter():
    found = verdict(against("base", -0.8), against("dense_active", +0.03))
    assert found.use == "dense"
    assert found.headline.startswith("Use the dense adapter here (dense_active): the mixture's perplexity is 3.0 % higher")


def test_an_interval_that_includes_0_is_no_win():
    found = verdict(against("base", -0.8), against("dense_active", -0.008, p=0.1))
    assert found.use == "dense"
    assert "no difference is shown" in found.headline


def test_a_dense_adapter_that_costs_no_more_has_to_be_beaten_too():
    rows = against("base", -0.8), against("dense_active", -0.05), against("dense_params", +0.02)
    cheap = verdict(*rows, dense_params=0.9e6)
    assert cheap.use == "dense"
    assert "dense_params" in cheap.headline
    dear = verdict(*rows, dense_params=1.5e6)
    assert dear.use == "mixture"
    assert "as many parameters, it is 2.0 % higher, at 0.67 times its FLOPs per token" in dear.headline


def test_a_dearer_mixture_says_so():
    found = verdict(against("dense_active", -0.05), gate_top2=1.2e6)
    assert "at 1.20 times its FLOPs per token" in found.headline
    assert any("executes 1.20 times the FLOPs per token of dense_active" in line for line in found.remarks)


def test_the_base_is_the_advice_where_nothing_improves_on_it():
    assert verdict(against("base", +0.05), against("dense_active", +0.01)).use == "base"


def test_without_the_fair_rival_there_is_no_verdict():
    found = verdict(against("base", -0.5))
    assert found.use == "unknown"
    assert "dense_active" in found.headline


def test_rivals_that_were_not_measured_are_named():
    found = verdict(against("dense_active", -0.05), against("dense_rank", -0.05))
    assert "Not compared: base, dense_params, random_slices, shuffled_gate." in found.remarks


def test_a_gate_that_adds_nothing_is_told():
    found = verdict(against("dense_active", -0.05), against("cbtm", -0.002), against("shuffled_gate", 0.0))
    assert any("not shown to choose better than cbtm" in line for line in found.remarks)
    assert any("does not matter which expert answers" in line for line in found.remarks)


def test_every_rival_gets_a_sentence_with_its_interval():
    rows = against("dense_rank", -0.1), against("dense_active", 0.001), against("oracle", 0.01)
    found = verdict(*rows)
    assert len(found.sentences) == 2
    assert found.sentences[0] == (
        "gate_top2 against dense_rank (dense, one expert's rank, equal rank): perplexity 10.0 % lower, "
        "95 % interval -11.0 % to -9.0 %, p = 0.002."
    )
    assert "no difference shown (0.1 % higher)" in found.sentences[1]
    assert any("1.0 % higher than the oracle's" in line for line in found.remarks)


@pytest.mark.parametrize(("p", "words"), [(0.0421, "p = 0.042"), (0.0002, "p < 0.001"), (1.0, "p = 1.000")])
def test_p_values_are_never_zero(p, words):
    assert p_value(against("base", -0.1, p=p)) == words


def test_an_interval_that_nearly_touches_0_shows_on_which_side():
    row = Comparison("gate_top2", "gate_soft", -0.01, (-0.02, -0.0002), 0.04)
    assert "-2.0 % to -0.020 %" in sentence(row)
