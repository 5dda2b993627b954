"""The data report: complete, escaped, self-contained, and the same from the same files."""

import json
import re

import pytest

from moe_router.config import Config
from moe_router.data.data_report import EXAMPLES, gather, markdown, page_html, report_files
from moe_router.data.prepare import prepare
from moe_router.errors import WorkspaceError
from moe_router.workspace import Workspace


@pytest.fixture
def prepared(tmp_path):
    """A prepared workspace: 60 records, 25 empty answers, one reject with markup, Portuguese and personal data."""
    rows = [{"prompt": f"Onde está a encomenda {n} que fiz na loja?", "response": f"Está no armazém {n}."} for n in range(60)]
    rows += [{"prompt": f"nothing {n}", "response": ""} for n in range(25)]
    rows += [{"prompt": "<script>alert('|')</script> ana@exemplo.pt", "response": "N/A"}]
    source = tmp_path / "a&b.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    workspace = Workspace(tmp_path / "workspace")
    return workspace, source, prepare(workspace, [source], Config())


def test_prepare_writes_both_forms_and_again_when_one_is_missing(prepared):
    workspace, source, first = prepared
    page, plain = report_files(workspace)
    before = page.read_bytes(), plain.read_bytes()
    page.unlink()
    again = prepare(workspace, [source], Config())
    assert not again.fresh
    assert (page.read_bytes(), plain.read_bytes()) == before
    assert again.findings == first.findings


def test_numbers_are_those_of_the_stage(prepared):
    workspace, _, done = prepared
    report = gather(workspace)
    assert report.read == 86
    assert sum(report.lengths["prompt"].values()) == sum(report.lengths["response"].values()) == done.records == 60
    assert {rule: len(rejects) for rule, rejects in report.rejects.items()} == {"boilerplate": 1, "empty_response": EXAMPLES}
    assert sum(report.rejected_by_file.values()) == done.rejected
    assert done.findings["languages"] == {"pt": 60}


@pytest.mark.parametrize("form", [markdown, page_html])
def test_everything_is_told(prepared, form):
    text = form(gather(prepared[0]))
    for part in ("60 of 86 records kept", "10 of 25, at random", "the only one", "[EMAIL_1]", "Languages", ">pt<|| pt |"):
        assert any(option in text for option in part.split("||")), part
    assert "<script" not in text
    assert "ana@" not in text


def test_the_page_needs_nothing_else_and_follows_the_system(prepared):
    page = page_html(gather(prepared[0]))
    assert not re.search(r"https?:|src=|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    assert "a&amp;b.jsonl" in page


def test_the_same_seed_draws_the_same_rejects(prepared):
    workspace = prepared[0]
    assert gather(workspace, 1) == gather(workspace, 1)
    drawn = {line["line"] for line in gather(workspace, 1).rejects["empty_response"]}
    assert len(drawn) == EXAMPLES
    assert drawn != {line["line"] for line in gather(workspace, 2).rejects["empty_response"]}


def test_missing_files_name_the_command(tmp_path):
    with pytest.raises(WorkspaceError, match="moe-router prepare"):
        gather(Workspace(tmp_path))
