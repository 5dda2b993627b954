"""The model card: valid for the hub, with the report's numbers, and without the user's text."""

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard
from report_fake import fake

from moe_router.cli import main
from moe_router.config import BaseConfig
from moe_router.errors import WorkspaceError
from moe_router.experts.library import CARD as EXPERT_CARD
from moe_router.experts.library import Library
from moe_router.report.card import Card, write_card
from moe_router.workspace import Workspace, write_json

PREPARED = {
    "records": 300,
    "rejected": 12,
    "splits": {"train": 200, "gate": 40, "tune": 30, "test": 30},
    "digest": "d4",
    "findings": {"languages": {"en": 20, "pt": 270, "unknown": 10}, "redacted": {"EMAIL": 7}},
}


@pytest.fixture
def library(tmp_path):
    names = ("returns-refunds", "férias-salários", "<orders> & co")
    cards = {
        name: {"name": name, "rank": 8, "records": 60, "tokens": 1200, "recipe": {"epochs": 3.0}, "sha256": name}
        for name in ("shared", *names)
    }
    made = Library(tmp_path / "experts", names, True, BaseConfig("meta/base-7b"), "b0", "plain", 64, "", cards)
    for name, content in cards.items():
        write_json(made.path / name / EXPERT_CARD, content)
    made.save_index()
    return made


def card(library, **more):
    return ModelCard(Card(library, fake(), PREPARED, "acme", **more).text())


def test_the_front_matter_is_what_the_hub_reads(library):
    data = card(library, license="apache-2.0").data
    assert (data.base_model, data.library_name, data.license) == ("meta/base-7b", "peft", "apache-2.0")
    assert data.language == ["pt", "en"]
    assert "mixture-of-experts" in data.tags
    figures = {result.metric_name: result.metric_value for result in data.eval_results}
    assert figures["perplexity"] == pytest.approx(fake().arm("gate_top2").perplexity, abs=1e-4)


def test_it_says_what_the_report_says(library):
    text = card(library).content
    report = fake()
    assert report.verdict.headline in text
    assert all(line in text for line in report.verdict.sentences)
    assert "férias-salários" in text and "7 EMAIL" in text and "300 records, 12 rejected" in text


def test_a_base_in_a_folder_is_not_told_to_the_hub_nor_where_it_lies(library, tmp_path):
    from dataclasses import replace

    folder = tmp_path / "secret" / "our-base"
    folder.mkdir(parents=True)
    made = card(replace(library, base=BaseConfig(str(folder))))
    assert made.data.base_model is None
    assert "`our-base`" in made.text and "secret" not in made.text


def test_it_is_written_beside_the_experts_for_its_own_report_only(library, tmp_path):
    place = Workspace(tmp_path)
    write_json(place.prepared, PREPARED)
    value = fake().to_json()
    write_json(place.reports / "report.json", value | {"environment": {"library_digest": "another"}})
    with pytest.raises(WorkspaceError, match="of another library"):
        write_card(place)
    write_json(place.reports / "report.json", value | {"environment": {"library_digest": library.digest}})
    done = CliRunner().invoke(main, ["card", "--workspace", str(tmp_path), "--name", "acme"])
    assert done.exit_code == 0, done.output
    assert ModelCard.load(tmp_path / "experts" / "README.md").data.model_name == "acme"
