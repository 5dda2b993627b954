"""Every arm measured for true, on a tiny base: once, then looked at from every side."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from models import tiny_llama
from report_place import make_place

from moe_router.cli import main
from moe_router.config import Config
from moe_router.data.embed import load_embedder
from moe_router.data.slices import Slices
from moe_router.errors import ConfigError
from moe_router.experts.library import Library
from moe_router.progress import Silent
from moe_router.report.against import LOSSES, load_losses
from moe_router.report.arms import ARMS
from moe_router.report.bench import Bench
from moe_router.report.make import make_report
from moe_router.report.pool import plan_of
from moe_router.report.registry import Training, arms_of, one_rank

SETTINGS = {"report": {"budget": "full", "seeds": 2, "price_per_hour": 2.0, "curve": True, "samples": 3}}


class Heard(Silent):
    """Keeps what a stage says."""

    def __init__(self):
        self.notes, self.stages = [], []

    def stage(self, title, total=None):
        self.stages.append(title)

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workspace with experts and gate, its settings and its base, and a larger base beside it."""
    folder = tmp_path_factory.mktemp("place")
    larger = {"report": SETTINGS["report"] | {"larger_base": str(tiny_llama(folder / "larger", hidden=128, seed=1))}}
    return make_place(folder, larger)


@pytest.fixture(scope="module")
def made(place):
    workspace, config, base = place
    heard = Heard()
    return make_report(workspace, config, heard, base), heard


def test_a_full_budget_measures_every_arm_on_the_same_tokens(made):
    report, _ = made
    assert [arm.id for arm in report.arms] == [name for name in ARMS if name != "dense_16bit"]  # its base is not 4-bit
    assert len({arm.target_tokens for arm in report.arms}) == 1
    assert all(arm.tokens_per_second > 0 and arm.bits_per_byte > 0 for arm in report.arms)


def test_trained_arms_saw_as_many_tokens_as_the_mixture(made):
    report, _ = made
    assert len({arm.trained_tokens for arm in report.arms if arm.id != "base"}) == 1


def test_a_larger_base_is_compared_on_the_same_text(place, made):
    report, _ = made
    larger, dense = report.arm("larger_base"), report.arm("dense_rank")
    assert larger.flops_per_token > 1.5 * dense.flops_per_token
    assert larger.target_tokens == dense.target_tokens
    assert larger.perplexity == pytest.approx(2 ** (larger.bits_per_byte * dense_bytes(report)), rel=1e-6)
    assert any("a dense adapter on the larger base" in line for line in report.verdict.remarks)


def dense_bytes(report):
    """Bytes of a response token, on average."""
    base = report.arm("base")
    return base.nats_per_token / np.log(2) / base.bits_per_byte


def test_merged_experts_cost_what_a_route_costs(made):
    report, _ = made
    for name in ("ties", "dare"):
        merged, mixture = report.arm(name), report.arm("gate_top2")
        assert merged.adapter_params == merged.active_adapter_params == mixture.active_adapter_params
        assert merged.flops_per_token < mixture.flops_per_token
        assert merged.train_flops > report.arm("uniform").train_flops


def test_full_fine_tuning_is_measured_on_a_model_of_its_own(place, made):
    workspace, (report, _) = place[0], made
    full, dense = report.arm("full"), report.arm("dense_active")
    assert (workspace.arms / "full" / "model.safetensors").exists()
    assert full.perplexity < report.arm("base").perplexity
    assert full.flops_per_token < dense.flops_per_token
    assert 1.2 < full.train_flops / dense.train_flops < 2
    assert full.memory_bytes < dense.memory_bytes  # an unquantised base beside adapters holds both


def test_arms_agree_with_themselves_to_some_degree(made):
    report, _ = made
    asked = [arm for arm in report.arms if arm.agreement is not None]
    assert {arm.id for arm in asked} == {arm.id for arm in report.arms if arm.kind.answers}
    assert all(1 / 3 <= arm.agreement <= 1 <= arm.distinct_answers <= 3 for arm in asked)


def test_the_curve_runs_through_the_whole_training(made):
    report, _ = made
    assert [point.arm for point in report.curve] == ["gate_top2"] * 3 + ["dense_active"] * 3
    tokens = [point.trained_tokens for point in report.curve[:3]]
    assert tokens == sorted(tokens)
    assert report.curve[2].perplexity == report.arm("gate_top2").perplexity
    assert report.curve[0].trained_tokens == report.curve[3].trained_tokens


def test_every_source_has_a_row_and_every_query_a_place(made):
    report, _ = made
    assert {row.name for row in report.sources} >= {"handbook.jsonl", "tickets.csv"}
    assert sum(row.records for row in report.sources) == sum(row.records for row in report.slices)
    assert len(report.slice_map.x) == len(report.slice_map.lead) == sum(row.records for row in report.slices)
    assert 0.99 < report.slice_map.share <= 1  # two slices differ along one line


def test_dense_params_holds_what_the_mixture_holds(made):
    report, _ = made
    dense, mixture = report.arm("dense_params"), report.arm("gate_top2")
    assert dense.rank == 6
    assert dense.adapter_params == mixture.adapter_params
    assert dense.active_adapter_params == dense.adapter_params
    assert report.arm("dense_active").active_adapter_params == mixture.active_adapter_params


def test_the_mixture_and_its_rival_are_trained_again(made):
    report, _ = made
    repeated = {arm.id: arm for arm in report.arms if arm.repeats}
    assert set(repeated) == {"gate_top2", "dense_active"}
    assert all(arm.repeats[0] != arm.perplexity for arm in repeated.values())
    assert any("under 2 training seeds" in line for line in report.verdict.remarks)


def test_choosing_is_paid_for(made):
    report, _ = made
    flops = {arm.id: arm.flops_per_token for arm in report.arms}
    assert flops["gate_top1"] > flops["oracle"]
    assert flops["shuffled_gate"] == flops["gate_top2"]
    assert report.arm("gate_top1").train_flops > report.arm("uniform").train_flops


def test_the_oracle_is_the_best_of_those_that_pick_one_expert(made):
    report, _ = made
    picked = ("oracle", "gate_top1", "best_fixed", "random_gate")
    assert min(picked, key=lambda name: report.arm(name).perplexity) == "oracle"


def test_the_estimate_is_said_before_anything_is_measured(made):
    _, heard = made
    assert heard.notes[0].startswith("report (full): about ")
    assert "dense_rank" in heard.notes[0]


def test_answers_stand_side_by_side_and_have_a_price(place, made):
    workspace, (report, _) = place[0], made
    rows = json.loads((workspace.reports / "answers.json").read_text(encoding="utf-8"))
    assert sum(row["shown"] for row in rows) == 2
    assert all(list(row["answers"]) == ["base", "dense_rank", "dense_active", "larger_base", "gate_top2"] for row in rows)
    assert [len(row["samples"]["base"]) for row in rows if "samples" in row] == [3, 3, 3]
    assert report.arm("gate_top2").key_fact_accuracy is not None
    assert report.arm("gate_top2").price.per_1000_answers > 0
    assert report.arm("cbtm").price.per_1000_answers is None


def test_every_loss_is_kept(place, made):
    workspace, (report, _) = place[0], made
    losses = load_losses(workspace.reports / LOSSES, report.environment["test_digest"])
    for arm in report.arms:
        assert np.exp(losses[arm.id].sum() / losses["tokens"].sum()) == pytest.approx(arm.perplexity)


def test_a_second_report_does_no_work_and_another_price_only_prices(place, made):
    workspace, config, base = place
    heard = Heard()
    assert make_report(workspace, config, heard, base) == made[0]
    dearer = make_report(workspace, replace(config, report=replace(config.report, price_per_hour=4.0)), heard, base)
    ours = [report.arm("gate_top2").price.per_training for report in (dearer, made[0])]
    assert ours[0] == pytest.approx(2 * ours[1])
    assert heard.stages == []


def test_the_command_compares_with_another_run(place, made):
    workspace = place[0]
    path = str(workspace.reports / "report.json")
    done = CliRunner().invoke(main, ["report", "--workspace", str(workspace.root), "--against", path, "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert value["arms"] == made[0].to_json()["arms"]
    assert value["against"]["same_records"]
    assert {row["relative"] for row in value["against"]["changes"]} == {0.0}
    shown = CliRunner().invoke(main, ["report", "--workspace", str(workspace.root), "--against", path])
    assert "Against" in shown.stdout


def test_a_smaller_budget_trains_nothing_again(place, made):
    workspace, config, base = place
    heard = Heard()
    report = make_report(workspace, config.override({"report": {"budget": "standard", "seeds": 1}}), heard, base)
    assert "; trains nothing" in heard.notes[0]
    assert not any(stage.startswith(("train ", "merge ")) for stage in heard.stages)
    assert "isolated" not in [arm.id for arm in report.arms]
    assert any("isolated" in note for note in report.notes)


@pytest.mark.parametrize("split", ["one", "slices", "random"])
def test_no_arm_is_trained_on_the_slice_of_a_removed_expert(place, split):
    workspace, config, base = place
    library, slices = Library.load(workspace.experts), Slices.load(workspace)
    gone, kept = library.names
    smaller = replace(library, names=(kept,))
    bench = Bench.of(workspace, config, smaller, slices, base, load_embedder(slices.embedder))
    plan = plan_of(bench, Training(one_rank, split=split))
    left = {record.id for record in plan.train.records}
    removed = {r.id for r, label in zip(bench.train.records, bench.train.labels, strict=True) if slices.names[label] == gone}
    assert left and removed
    assert not left & removed
    assert set(plan.train.labels.tolist()) == {0}
    whole = plan_of(replace(bench, library=library), Training(one_rank, split=split))
    assert plan.data_digest != whole.data_digest


def test_an_unknown_budget_is_refused():
    with pytest.raises(ConfigError, match=r"report\.budget"):
        Config().override({"report": {"budget": "huge"}})


def test_budgets_grow(place):
    library = Library.load(place[0].experts)
    quick, standard, full = (set(arms_of(budget, library)) for budget in ("quick", "standard", "full"))
    assert quick < standard < full == {*ARMS} - {"larger_base", "dense_16bit"}
    packed = replace(library, base=replace(library.base, quantization="nf4"))
    assert set(arms_of("full", packed, "some/base")) == {*ARMS}
    assert "shared_only" not in arms_of("full", replace(library, has_shared=False))
    rounded = replace(library, base=replace(library.base, quantization="gptq"))
    assert {*ARMS} - {*arms_of("full", rounded, "some/base")} == {"dense_16bit", "full"}
