"""Every arm measured for true, on a tiny base: once, then looked at from every side."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from models import tiny_llama

from moe_router.cli import main
from moe_router.config import Config
from moe_router.data.embed import load_embedder
from moe_router.data.prepare import prepare
from moe_router.data.sample import write_sample
from moe_router.data.slices import Slices, slice_records
from moe_router.errors import ConfigError
from moe_router.experts.base import load_base
from moe_router.experts.library import Library
from moe_router.experts.train import train_experts
from moe_router.gate.train import train_gate
from moe_router.report.against import LOSSES, load_losses
from moe_router.report.arms import ARMS
from moe_router.report.bench import Bench
from moe_router.report.make import make_report
from moe_router.report.pool import plan_of
from moe_router.report.registry import Training, arms_of, one_rank
from moe_router.workspace import Workspace

SETTINGS = {
    "data": {"limit": 180},
    "slice": {"k": 2},
    "experts": {"epochs": 0.25, "rank": 2, "shared_rank": 2, "search_rates": False},
    "report": {"bootstrap": 50, "budget": "full", "examples": 2, "seeds": 2, "price_per_hour": 2.0},
}


class Heard:
    """Keeps what a stage says."""

    def __init__(self):
        self.notes, self.stages = [], []

    def stage(self, title, total=None):
        self.stages.append(title)

    def advance(self, amount, note=""):
        pass

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workspace with experts and gate, its settings and its base."""
    folder = tmp_path_factory.mktemp("place")
    base = {"model": str(tiny_llama(folder / "base")), "quantization": "none", "dtype": "float32"}
    config = Config().override(SETTINGS | {"base": base})
    workspace = Workspace.find(folder / "workspace")
    workspace.root.mkdir()
    workspace.config.write_text(config.to_toml(), encoding="utf-8")
    prepare(workspace, write_sample(workspace.sample), config)
    slice_records(workspace, config)
    opened = load_base(config.base)
    train_experts(workspace, config, base=opened)
    train_gate(workspace, config)
    return workspace, config, opened


@pytest.fixture(scope="module")
def made(place):
    workspace, config, base = place
    heard = Heard()
    return make_report(workspace, config, heard, base), heard


def test_a_full_budget_measures_every_arm_on_the_same_tokens(made):
    report, _ = made
    assert [arm.id for arm in report.arms] == list(ARMS)
    assert len({arm.target_tokens for arm in report.arms}) == 1
    assert all(arm.tokens_per_second > 0 and arm.bits_per_byte > 0 for arm in report.arms)


def test_trained_arms_saw_as_many_tokens_as_the_mixture(made):
    report, _ = made
    assert len({arm.trained_tokens for arm in report.arms if arm.id != "base"}) == 1


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
    assert len(rows) == 2
    assert all(list(row["answers"]) == ["base", "dense_rank", "dense_active", "gate_top2"] for row in rows)
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
    assert not any(stage.startswith("train ") for stage in heard.stages)
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
    assert quick < standard < full == set(ARMS)
    assert "shared_only" not in arms_of("full", replace(library, has_shared=False))
