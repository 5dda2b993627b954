"""The report as JSON: its schema, reading it back, and what a price makes of it."""

import json
from importlib import resources

import jsonschema
import pytest
from report_fake import NOW, fake

from moe_router.errors import WorkspaceError
from moe_router.report.arms import ARMS
from moe_router.report.document import Report
from moe_router.report.schema import schema as made_schema

FIELDS = {
    *("id", "perplexity", "ci95", "nats_per_token", "target_tokens", "flops_per_token", "active_flops_per_token"),
    *("train_flops", "adapter_params", "active_adapter_params"),
}
"""What other programs may rely on."""


def schema():
    return json.loads(resources.files("moe_router.report").joinpath("report.schema.json").read_text(encoding="utf-8"))


def plain(report):
    return json.loads(json.dumps(report.to_json(), allow_nan=False))


@pytest.mark.parametrize("names", [NOW, tuple(ARMS), ("base", "gate_top2")], ids=["now", "all", "few"])
def test_a_report_keeps_to_the_schema(names):
    value = plain(fake(names).priced(1.5))
    jsonschema.validate(value, schema())
    assert [arm["id"] for arm in value["arms"]] == list(names)
    assert all(arm.keys() >= FIELDS for arm in value["arms"])


@pytest.mark.parametrize("damage", [{"surprise": 1}, {"schema": 2}, {"arms": [{"id": "base"}]}, {"verdict": {"use": "maybe"}}])
def test_the_schema_refuses_what_is_no_report(damage):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plain(fake()) | damage, schema())


def test_the_schema_knows_every_arm():
    assert schema()["$defs"]["Arm"]["properties"]["id"]["enum"] == list(ARMS)


def test_the_schema_is_that_of_the_dataclasses():
    """`python -m moe_router.report.schema` writes it."""
    assert schema() == made_schema()


def test_what_was_not_measured_is_left_out():
    value = plain(fake(("base", "gate_top2")))
    assert "regret" not in value
    assert "exact_match" not in value["arms"][0]
    assert "price" not in value["arms"][0]


def test_a_report_is_read_back_as_it_was(tmp_path):
    report = fake().priced(2.0)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.to_json()), encoding="utf-8")
    found = Report.load(path)
    assert found == report
    assert not found.fresh
    assert found.slices[0].against.outcome in ("better", "worse", "open")


@pytest.mark.parametrize("text", ["{", '{"schema": 99}', '{"schema": 1}', "[]", '{"schema": 1, "arms": 3}'])
def test_a_damaged_report_is_named(text, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WorkspaceError, match=r"report\.json"):
        Report.load(path)


def test_a_price_becomes_the_price_of_answers_and_training():
    arm = fake().priced(3.6).arm("gate_top2")
    assert arm.price.per_1000_answers == pytest.approx(1000 * (20 / 5000 + 15 / 400) * 0.001)
    assert arm.price.per_training == pytest.approx(arm.train_flops / (5000 * arm.flops_per_token) * 0.001)


def test_no_price_no_cost():
    assert fake().priced(3.6).priced(0) == fake()
    assert fake().priced(3.6).arm("base").price.per_training is None
