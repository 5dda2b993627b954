"""`gates compare`, `gates drift` and `route --explain` on a tiny real library."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from gate_library import tiny_library

from moe_router.cli import main
from moe_router.errors import InputError
from moe_router.experts.library import Library
from moe_router.gate.compare import compare_gates
from moe_router.gate.comparison import LEARNED
from moe_router.gate.drift import drift_of_file
from moe_router.gate.train import train_gate
from moe_router.inference.routing import Selector


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    place, config = tiny_library(tmp_path_factory.mktemp("compare"))
    train_gate(place, config)
    return place


@pytest.fixture(scope="module")
def compared(workspace):
    return compare_gates(workspace)


def run(workspace, *words):
    done = CliRunner().invoke(main, [*words, "--workspace", str(workspace.root), "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_every_gate_is_there_and_none_beats_the_oracle_alone(compared):
    rows = {row.name: row for row in compared.rows}
    assert {LEARNED, "c-BTM", "nearest records", "slice classifier", "uniform", "random", "oracle"} <= rows.keys()
    assert {"end to end", "Arrow, per token"} <= rows.keys()
    assert len({row.name for row in compared.rows}) == len(compared.rows) == 14
    assert rows["oracle"].regret == 0 and rows["oracle"].of_oracle == 1
    one = ("own slice", "best fixed expert of slice", "random", "learned, top-1")
    assert all(rows[name].regret >= 0 for name in one)
    assert [row.perplexity for row in compared.rows] == sorted(row.perplexity for row in compared.rows)
    for name, row in rows.items():
        low, high = row.against_learned
        assert low <= row.perplexity / rows[LEARNED].perplexity - 1 <= high or name == LEARNED
    assert all(np.isfinite([row.perplexity, row.of_oracle, row.regret]).all() for row in compared.rows)
    assert {name for name, row in rows.items() if row.temperature is not None} == {
        "c-BTM",
        "nearest records",
        "slice classifier",
        "end to end",
        "Arrow, per token",
    }


def test_comparing_is_repeatable_but_for_the_time(workspace, compared):
    again = compare_gates(workspace)
    assert [(r.name, r.perplexity, r.temperature) for r in again.rows] == [
        (r.name, r.perplexity, r.temperature) for r in compared.rows
    ]


def test_compare_prints_a_table_or_json(workspace):
    assert len(run(workspace, "gates", "compare")["rows"]) == 14
    shown = CliRunner().invoke(main, ["gates", "compare", "--workspace", str(workspace.root), "--quiet"]).stdout
    assert "c-BTM" in shown and "of the way from own slice to oracle" in shown


def test_explained_routes_name_weights_threshold_and_training_records(workspace):
    text = "oven flour question 4?"
    found = run(workspace, "route", text, "--explain")["routes"][0]
    why = found["explanation"]
    assert sum(why["weights"].values()) == pytest.approx(1, abs=1e-4)
    assert len(why["nearest"]) == 3 and why["nearest"][0]["similarity"] > 0.5
    assert found["abstained"] == (why["score"] < why["threshold"])
    shown = CliRunner().invoke(main, ["route", text, "--explain", "--workspace", str(workspace.root)]).stdout
    assert "abstain threshold" in shown and "near 0." in shown


def test_routes_keep_to_what_is_allowed(workspace):
    names = Library.load(workspace.experts).names
    asked = ["oven flour question 4?", "sail harbour question 5?"]
    found = run(workspace, "route", *asked, "--allow", names[1], "--mode", "soft")["routes"]
    assert all(set(route["weights"]) <= {names[1]} for route in found)
    assert any(route["abstained"] for route in found)
    one = run(workspace, "route", *asked, "--mode", "soft", "--max-experts", "1")["routes"]
    assert all(len(route["weights"]) <= 1 for route in one)
    wrong = CliRunner().invoke(main, ["route", "a", "--allow", "nobody", "--workspace", str(workspace.root)])
    assert wrong.exit_code == 1 and "nobody" in wrong.stderr and "Traceback" not in wrong.stderr


ODD = {
    "empty": "",
    "blank": " \n ",
    "huge": "contract clause " * 20_000,
    "binary": bytes(range(256)).decode("latin-1") * 20,
    "not Unicode": "oven \ud800 flour",
    "Portuguese": "Quem trata da fatura do mês passado, por favor?",
    "Chinese": "请问发票什么时候付款？",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_any_prompt_routes_or_is_abstained_on(workspace, text):
    selector = Selector.load(Library.load(workspace.experts))
    first, second = (selector.route([text, "oven flour question 4?"])[0] for _ in range(2))
    assert first == second
    assert first.abstained == (not first.weights) and 0 <= first.confidence <= 1
    assert first.abstained or sum(first.weights.values()) == pytest.approx(1, abs=1e-5)
    assert first.abstained or text.strip()


def test_drift_of_a_file(workspace, tmp_path):
    file = tmp_path / "asked.txt"
    file.write_text("\n".join(f"Is the moon of planet {i} made of ice?" for i in range(60)), encoding="utf-8")
    found = run(workspace, "gates", "drift", str(file))
    assert found["changed"] and found["queries"] == 60 and found["abstained"] > found["abstained_before"]
    for text in ("", '{"no": 1}'):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"asked\.txt"):
            drift_of_file(workspace, file)
