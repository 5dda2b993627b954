"""The report as JSON, Markdown, figure and terminal tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import moe_router
from moe_router.errors import LibraryError, WorkspaceError
from moe_router.report import labels, plot
from moe_router.report.arms import ARMS, Arm, Comparison, Costs, ExpertRow, Report
from moe_router.report.render import markdown, save, si
from moe_router.report.terminal import AnswerRow, SliceRow, answers_table, lines, report_lines, slices_table
from moe_router.report.verdict import judge

FIELDS = {
    "id",
    "perplexity",
    "ci95",
    "nats_per_token",
    "target_tokens",
    "flops_per_token",
    "active_flops_per_token",
    "train_flops",
    "adapter_params",
    "active_adapter_params",
}
"""What issue 2 asks of an arm."""
NOW = ("base", "dense_rank", "dense_active", "uniform", "cbtm", "gate_top1", "gate_top2", "oracle")
LEVEL = {"base": 49.4, "uniform": 14.6, "dense_rank": 10.9, "shuffled_gate": 12.9, "dense_active": 10.1, "oracle": 9.4}
RANKS = {"base": 0, "dense_rank": 8, "uniform": 72, "dense_params": 72, "gate_soft": 72, "oracle": 16, "gate_top1": 16}


def fake(names=NOW, seed=0):
    """A report of invented losses."""
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 40, 300)
    shape = random.gamma(16, 1 / 16, 300)
    losses = {
        name: np.log(LEVEL.get(name, 9.7 + 0.05 * i)) * shape * tokens * random.normal(1, 0.02, 300)
        for i, name in enumerate(names)
    }
    arms = []
    for name in names:
        rank = RANKS.get(name, 24)
        flops = 33.4e6 + 95e3 * rank
        costs = Costs(flops, flops, 5e12 if rank else 0, rank * 47_616, rank * 47_616)
        arms.append(Arm.measured(name, losses[name], tokens, costs, key_fact_accuracy=0.5))
    rivals = [name for name in names if name != "gate_top2"]
    rows = tuple(Comparison.measured(("gate_top2", rival), losses, tokens) for rival in rivals)
    return Report(
        arms=tuple(arms),
        experts=(ExpertRow("returns-refunds", 812, 51.2, 8.4), ExpertRow("férias-salários", 640, 47.1, 9.9)),
        comparisons=rows,
        verdict=judge(arms, rows),
        environment={"versions": {"torch": "2.13"}, "command": "report | tee", "seeds": [0]},
        timings={"prepare": 1.25, "train experts": 140.0},
        notes=("One seed.",),
        inputs="abc",
    )


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    """The same output under `pytest -s` in a colour terminal."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture(scope="module")
def report():
    return fake()


def test_an_arm_is_measured_from_its_losses():
    costs = Costs(2.0, 1.0, 3.0, 4, 5)
    arm = Arm.measured("cbtm", np.array([4.0, 6.0]), np.array([2, 3]), costs, resamples=50, learning_rate=1e-3)
    assert (arm.perplexity, arm.nats_per_token, arm.target_tokens) == (pytest.approx(np.exp(2)), 2.0, 5)
    assert (arm.label, arm.flops_per_token, arm.active_adapter_params) == ("c-BTM", 2.0, 5)
    assert arm.learning_rate == 1e-3


def test_a_loss_that_is_not_finite_is_refused_by_name():
    with pytest.raises(LibraryError, match="dense_rank: 1 of 2"):
        Arm.measured("dense_rank", np.array([1.0, np.nan]), np.array([1, 1]), Costs(1, 1, 1, 1, 1))


def test_an_unknown_arm_is_refused():
    with pytest.raises(LibraryError, match="unknown arm 'mystery'"):
        Arm("mystery", "", 1, (1, 1), 0, 1, 1, 1, 1, 1, 1)


def test_json_has_the_schema(report):
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert value["schema"] == 1
    assert [arm["id"] for arm in value["arms"]] == list(NOW)
    for arm in value["arms"]:
        assert arm.keys() >= FIELDS
        low, high = arm["ci95"]
        assert low <= arm["perplexity"] <= high
        assert "tokens_per_second" not in arm
    assert value["verdict"]["use"] in ("mixture", "dense", "base", "unknown")
    assert {"arm", "rival", "relative", "ci95", "p"} == value["comparisons"][0].keys()
    assert {"name", "target_tokens", "before", "after"} == value["experts"][0].keys()


def test_a_saved_report_is_loaded_again(report, tmp_path):
    files = save(report, tmp_path / "reports")
    loaded = Report.load(files.json)
    assert loaded == report
    assert not loaded.fresh
    assert files.png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "<svg" in files.svg.read_text(encoding="utf-8")
    assert sorted(path.name for path in files.json.parent.iterdir()) == [
        "perplexity-flops.png",
        "perplexity-flops.svg",
        "report.json",
        "report.md",
    ]


@pytest.mark.parametrize("text", ["{", '{"schema": 99}', '{"schema": 1}', "[]"])
def test_a_damaged_report_is_named(text, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WorkspaceError, match=r"report\.json"):
        Report.load(path)


def test_markdown_has_every_arm_expert_and_rival(report):
    page = markdown(report)
    for name in NOW:
        assert f"| `{name}` |" in page
    assert "| férias-salários | 640 | 47.10 | 9.90 |" in page
    assert f"**{report.verdict.headline}**" in page
    assert "| versions.torch | 2.13 |" in page
    assert "report \\| tee" in page
    assert "- One seed." in page
    assert "![Perplexity against FLOPs per token" in page
    widths = {line.count(" | ") for line in page.splitlines() if line.startswith("| `") and "gate_top2` | `" in line}
    assert len(widths) == 1


def test_the_figure_is_the_same_each_time(report, tmp_path):
    for form in ("png", "svg"):
        for name in ("one", "two"):
            plot.save_figure(report.arms, tmp_path / f"{name}.{form}")
        assert (tmp_path / f"one.{form}").read_bytes() == (tmp_path / f"two.{form}").read_bytes()


def test_the_figure_opens_as_an_image_of_a_useful_size(report, tmp_path):
    from matplotlib.image import imread

    plot.save_figure(report.arms, tmp_path / "figure.png")
    height, width = imread(tmp_path / "figure.png").shape[:2]
    assert (width, height) == (1376, 928)


@pytest.mark.parametrize("names", [NOW, tuple(ARMS)], ids=["now", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_no_label_covers_another_or_leaves_the_figure(names, seed):
    report = fake(names, seed)
    figure = plot.draw(report.arms)
    shown = {f"{arm.label}  {arm.perplexity:.2f}" for arm in report.arms}
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts if text.get_text() in shown]
        shown -= {text.get_text() for text in axis.texts}
        for index, box in enumerate(boxes):
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.width
            assert not any(box.overlaps(other) for other in boxes[:index])
    assert not shown


def test_the_axis_breaks_for_a_far_base_only():
    far, near = plot.split(fake().arms)
    assert [arm.id for arm in far] == ["base"]
    assert len(near) == len(NOW) - 1
    assert plot.split(near)[0] == []
    assert plot.split([*far, *near[:1]])[0] == []


def test_one_arm_alone_can_be_drawn(tmp_path):
    plot.save_figure(fake(("base", "gate_top2")).arms[:1], tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("end", "expected"), [((10, 10), True), ((10, 0), False), ((0, 10), False), ((2, 2), False), ((5, 3), True)]
)
def test_lines_cross_boxes(end, expected):
    assert labels.crosses((0, 0), end, labels.Box(4, 2, 6, 6)) is expected


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (12, "12"), (999.6e3, "1.00 M"), (33.44e6, "33.4 M"), (5e12, "5.00 T"), (381_000, "381 k"), (2.5e18, "2.50 E")],
)
def test_counts_are_short(number, text):
    assert si(number) == text


def test_the_terminal_fits_100_columns_without_colour():
    report = fake(tuple(ARMS))
    shown = report_lines(report, width=100)
    assert max(map(len, shown)) <= 100
    text = "\n".join(shown)
    assert "\x1b" not in text
    assert "…" not in text
    for arm in report.arms:
        assert f"{arm.ci95[0]:.2f}–{arm.ci95[1]:.2f}" in text
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


def test_importing_the_report_loads_no_heavy_library():
    code = (
        "import sys, moe_router.report.terminal, moe_router.report.plot, moe_router.report.costs\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'rich') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(moe_router.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
