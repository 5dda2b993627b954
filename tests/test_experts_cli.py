"""`moe-router experts …` on a tiny workspace: stdout answers, stderr notes, exit codes."""

import json

import pytest
from click.testing import CliRunner
from tiny_library import records, settings

from moe_router.cli import main
from moe_router.data.records import save_records
from moe_router.data.slices import slice_records
from moe_router.experts.library import Library
from moe_router.experts.train import train_experts
from moe_router.gate.train import train_gate
from moe_router.workspace import Workspace, write_text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    config = settings(workspace.root / "base")
    write_text(workspace.config, config.to_toml())
    save_records(workspace.records, records())
    slice_records(workspace, config)
    train_experts(workspace, config)
    train_gate(workspace, config)
    return workspace


def run(place, *arguments):
    return CliRunner().invoke(main, ["experts", *arguments, "--workspace", str(place.root)])


def answer(place, *arguments):
    result = run(place, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_librarys_life(place, tmp_path):
    first, second, third = Library.load(place.experts).names
    assert (place.experts / "losses.png").exists()
    checks = answer(place, "verify")["checks"]
    assert {check["check"] for check in checks} == {"file", "updated", "logits", "peft", "slice"}
    for form in ("adapter", "expert", "merged"):
        answer(place, "export", first, "--to", str(tmp_path / form), "--as", form)
    answer(place, "export", f"{first}=0.5", f"{third}=0.5", "--to", str(tmp_path / "mixture"))
    assert (tmp_path / "mixture" / "adapter_config.json").exists()
    assert (tmp_path / "merged" / "config.json").exists()
    assert answer(place, "remove", second)["experts"] == [first, third]
    sweep = ("--steps", "6", "--evaluate-every", "2", "--schedule", "constant", "--patience", "3")
    assert answer(place, "add", second, *sweep)["experts"] == [first, third, second]
    assert answer(place, "rename", first, "start")["experts"] == ["start", third, second]
    imported = answer(place, "import", str(tmp_path / "adapter"), "--name", "legal")
    assert imported["experts"] == ["start", third, second, "legal"]
    cards = {card["name"]: card for card in answer(place, "list")["experts"]}
    assert cards[second]["steps"] == 6
    card = answer(place, "show", second)
    assert [step for step, _ in card["evaluations"]] == [2, 4, 6]
    shown = [line.split() for line in run(place, "show", second).stdout.splitlines() if line.startswith("  step ")]
    assert [line[1] for line in shown] == ["2", "4", "6"]
    assert [line[1] for line in shown if line[-1] == "kept"] == [str(card["best_step"])]
    assert float(shown[0][2]) == pytest.approx(card["evaluations"][0][1], abs=1e-4)
    assert cards["legal"]["rank"] == 2 + 2 + 4  # minus the shared one, the shared one, the expert
    assert answer(place, "show", "legal")["imported_from"] == "adapter"
    assert run(place, "list").exit_code == 0


def test_mistakes_are_one_line(place, tmp_path):
    for arguments, words in (
        (("export", "nobody", "--to", str(tmp_path / "x")), "no expert 'nobody'"),
        (("add", "nobody"), "no slice 'nobody'"),
        (("rename", "shared", "x"), "shared expert"),
        (("remove", "nobody"), "no expert 'nobody'"),
    ):
        result = run(place, *arguments)
        assert result.exit_code == 1, result.output
        assert words in result.stderr
        assert result.stderr.strip().count("\n") <= 2
        assert result.stdout == ""
    assert run(place, "export", "a=x", "--to", str(tmp_path / "x")).exit_code == 2
