"""The verdict's words, won and lost."""

from dataclasses import replace

import pytest

from moe_router.report.arms import ARMS, Arm, Comparison, Regret, SliceRow
from moe_router.report.verdict import judge


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
    assert found.headline.startswith(
        "Do not use a mixture here; use one dense adapter (dense_active): the mixture's perplexity is 3.0 % higher"
    )


def test_an_interval_that_includes_0_is_no_win():
    found = verdict(against("base", -0.8), against("dense_active", -0.008, p=0.1))
    assert found.use == "dense"
    assert "the mixture is not shown to be better" in found.headline


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


def test_rivals_that_share_nothing_stand_in_the_table_alone():
    found = verdict(against("dense_active", -0.05), against("uniform", -0.3), against("shared_only", -0.2))
    assert [line.split()[2] for line in found.sentences] == ["dense_active"]


def test_a_dense_advice_comes_with_its_setting():
    rows = against("base", -0.8), against("dense_active", +0.03)
    arms = [arm("gate_top2"), arm("base", 45.0), replace(arm("dense_active"), rank=24, learning_rate=4e-3)]
    found = judge(arms, rows)
    assert "(dense_active, rank 24)" in found.headline
    assert "--k 1 --experts-mode isolated --rank 24 --learning-rate 0.004" in found.instead
    assert judge([*arms[:2], arm("dense_active")], (against("base", -0.8), against("dense_active", -0.05))).instead == ""


def row(name, relative, p):
    found = replace(against("dense_active", relative), p=p)
    return SliceRow(name, 10, 100, {"gate_top2": 9.0, "dense_active": 9.1}, found)


def test_slices_are_named_where_a_difference_survives_the_number_of_slices():
    rows = [row("férias", 0.05, 0.004), row("orders", 0.04, 0.03), row("cards", -0.06, 0.004)]
    found = judge([arm("gate_top2"), arm("dense_active")], [against("dense_active", 0.0)], rows)
    assert "The mixture loses to dense_active on férias (5.0 % higher)." in found.remarks
    assert "The mixture beats dense_active on cards (6.0 % lower)." in found.remarks
    assert not any("orders" in line for line in found.remarks)
    none = judge([arm("gate_top2"), arm("dense_active")], [against("dense_active", 0.0)], rows[1:2] * 3)
    assert any("On no single slice" in line for line in none.remarks)


@pytest.mark.parametrize(
    ("gate", "experts", "words"),
    [(0.02, 0.01, "The gate, more than the experts"), (0.01, 0.02, "The experts, more than the gate"), (0.01, -0.03, "lead")],
)
def test_regret_names_the_part_to_blame(gate, experts, words):
    split = Regret("dense_active", gate, (gate - 0.005, gate + 0.005), experts, (experts - 0.005, experts + 0.005))
    found = judge([arm("gate_top2"), arm("dense_active")], [against("dense_active", 0.01)], regret=split)
    assert any(words in line and f"{gate:+.4f}" in line for line in found.remarks)


def test_one_expert_is_no_mixture_whatever_the_figures():
    found = judge([arm("gate_top2"), arm("dense_active")], [against("dense_active", -0.2)], experts=1)
    assert (found.use, found.headline) == (
        "dense",
        "There is nothing to mix: the library has one expert, which is a dense adapter already.",
    )


@pytest.mark.parametrize(("again", "use"), [((9.6, 9.8), "dense"), ((9.1, 9.6), "mixture")])
def test_a_lead_that_another_seed_undoes_is_no_lead(again, use):
    arms = [replace(arm("gate_top2", 9.0), repeats=again[:1]), replace(arm("dense_active", 9.5), repeats=again[1:])]
    found = judge(arms, [against("dense_active", -0.05)])
    assert found.use == use
    assert any("under 2 training seeds: gate_top2 9.000, " in line for line in found.remarks)


def test_a_lead_on_one_seed_says_so():
    assert any("may be luck" in line for line in verdict(against("dense_active", -0.05)).remarks)


def test_a_mixture_that_one_expert_equals_is_told_to_use_one():
    found = verdict(against("dense_active", -0.05), against("gate_top1", 0.001, p=0.5), gate_top1=0.9e6)
    assert found.use == "mixture"
    assert found.instead.startswith("`--gate-mode top1` uses one expert per query: no difference")
    assert "at 0.90 times its FLOPs per token" in found.instead
    assert verdict(against("dense_active", -0.05), against("gate_top1", -0.02)).instead == ""


def test_a_16bit_adapter_comes_with_its_precision():
    rows = against("base", -0.8), against("dense_active", -0.05), against("dense_16bit", +0.03)
    arms = [arm("gate_top2"), arm("base", 45.0), arm("dense_active"), replace(arm("dense_16bit"), rank=24)]
    assert judge(arms, rows).instead.startswith("`moe-router build SOURCE --k 1 --experts-mode isolated --rank 24")
    assert "--quantization none" in judge(arms, rows).instead


def test_a_larger_base_is_weighed_by_its_flops():
    found = verdict(against("dense_active", -0.05), against("larger_base", +0.1), larger_base=4e6)
    assert any(
        "With 0.25 times the FLOPs per token, the mixture's perplexity is 10.0 % higher" in line for line in found.remarks
    )
    assert found.use == "mixture"


def test_a_dense_adapter_of_more_memory_does_not_decide():
    rows = against("base", -0.8), against("dense_active", -0.05), against("dense_16bit", +0.03)
    arms = [replace(arm("gate_top2"), memory_bytes=1e6), arm("base", 45.0), arm("dense_active")]
    assert judge([*arms, replace(arm("dense_16bit"), memory_bytes=4e6)], rows).use == "mixture"
    assert judge([*arms, replace(arm("dense_16bit"), memory_bytes=1e6)], rows).use == "dense"
