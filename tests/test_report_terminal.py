"""The report and the answers on a terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from report_fake import fake

import moe_router
from moe_router.report.arms import ARMS
from moe_router.report.terminal import AnswerRow, SliceRow, answers_table, lines, report_lines, slices_table
from moe_router.report.words import level


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    """The same output under `pytest -s` in a colour terminal."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def test_the_terminal_fits_100_columns_without_colour():
    report = fake(tuple(ARMS))
    shown = report_lines(report, width=100)
    assert max(map(len, shown)) <= 100
    text = "\n".join(shown)
    assert "\x1b" not in text
    assert "…" not in text
    for arm in report.arms:
        assert f"{level(arm.ci95[0])}–{level(arm.ci95[1])}" in text
        assert f" {arm.id} " in text
    assert " ".join(report.verdict.headline.split()) in " ".join(text.split())
    assert any(report.verdict.headline[:40] in line for line in report.lines())


def test_foreign_text_cannot_steer_the_terminal():
    rows = [SliceRow("devoluções", 1234, ("[bold]prazo[/bold]\x1b[31m de\nreembolso?", "x" * 300))]
    shown = lines(slices_table(rows), width=100)
    text = "\n".join(shown)
    assert "[bold]prazo[/bold]" in text
    assert "\x1b" not in text
    assert "1,234" in text
    assert max(map(len, shown)) <= 100


def test_answers_show_their_route():
    rows = [AnswerRow("How long?", "14 days", {"orders": 0.2, "refunds": 0.8}, 0.9), AnswerRow("Cup?", "?", {}, 0.1)]
    text = "\n".join(lines(answers_table(rows), width=100))
    assert "refunds 0.80 + orders 0.20 (confidence 0.90)" in text
    assert "abstained" in text


def test_importing_what_shows_reports_loads_no_heavy_library():
    modules = "terminal, moe_router.report.figures, moe_router.report.html, moe_router.report.costs, moe_router.report.registry"
    code = (
        f"import sys, moe_router.report.{modules}\n"
        "heavy = 'torch', 'transformers', 'sklearn', 'matplotlib', 'pyarrow', 'rich'\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(moe_router.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
