"""The Markdown page."""

import pytest
from report_fake import NOW, fake

from moe_router.report.arms import ARMS
from moe_router.report.markdown import markdown, rows_of
from moe_router.report.tables import Table, tables


@pytest.fixture(scope="module")
def report():
    return fake()


def test_markdown_has_every_arm_expert_and_rival(report):
    text = markdown(report)
    for name in NOW:
        assert f"| `{name}` |" in text
    assert "| férias-salários | " in text
    assert f"**{report.verdict.headline}**" in text
    assert "| versions.torch | 2.13 |" in text
    assert "report \\| tee" in text
    assert "- One seed." in text
    assert "![Perplexity against FLOPs per token" in text


def test_rows_are_as_wide_as_their_head():
    for report in (fake(), fake(tuple(ARMS)), fake(("base", "gate_top2"))):
        for table in tables(report):
            assert {len(row) for row in table.rows} == {len(table.head)}


def test_columns_nobody_has_are_left_out(report):
    heads = [table.head for table in tables(report)]
    assert "right facts" in heads[0]
    assert "right answers" not in heads[0]
    assert "1,000 answers" not in heads[-1]
    assert "1,000 answers" in [table.head for table in tables(report.priced(2))][-1]


def test_cells_cannot_break_a_table():
    lines = rows_of(Table("t", "", ("a", "b"), (("x|y", "one\ntwo"),), right=(1,), code=(0,)))
    assert lines == ["| a | b |", "| --- | ---: |", "| `x\\|y` | one two |"]
