"""Progress on a terminal, without one, and quiet."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from moe_router.console import Lines, Quiet, reporter
from moe_router.live import Live, lanes_table, stage_line
from moe_router.progress import Lane, Pace, Stage, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(progress):
    with progress:
        progress.stage("embed", 10)
        progress.advance(4)
        progress.note("[bold] is no markup · não é")
        progress.advance(6, "256 records/s")
        progress.stage("count")
        progress.advance(1)


def test_the_reporter_suits_the_stream():
    assert isinstance(reporter(quiet=True, stream=Terminal()), Quiet)
    assert isinstance(reporter(stream=Terminal()), Live)
    assert isinstance(reporter(stream=io.StringIO()), Lines)


def test_stderr_is_the_default(capsys):
    work(reporter())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "embed" in captured.err


def test_quiet_says_nothing(capsys):
    work(reporter(quiet=True))
    assert capsys.readouterr() == ("", "")


def test_plain_lines_begin_and_end_each_stage():
    stream = io.StringIO()
    work(Lines(stream))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "embed"
    assert lines[1] == "  [bold] is no markup · não é"
    assert lines[2].startswith("embed: done in ")
    assert lines[3] == "count"
    assert lines[4].startswith("count: done in ")
    assert len(lines) == 5


def test_plain_lines_tell_the_share_when_it_takes_long():
    stream = io.StringIO()
    progress = Lines(stream, interval=0.0)
    progress.stage("train", 200)
    progress.advance(50, "loss 2.1")
    progress.stage("count")
    progress.advance(1500)
    lines = stream.getvalue().splitlines()
    assert lines[1].startswith("train: 25%")
    assert lines[1].endswith("loss 2.1")
    assert lines[-1].startswith("count: 1,500")


@pytest.mark.parametrize("make", [lambda s: Lines(s), lambda s: Live(s)], ids=["lines", "live"])
def test_a_stage_that_failed_is_not_called_done(make):
    stream = Terminal()
    with pytest.raises(ValueError, match="broken"), make(stream) as progress:
        progress.stage("train", 10)
        progress.advance(1)
        raise ValueError("broken")
    assert "done" not in stream.getvalue()
    assert "100 %" not in stream.getvalue()


@pytest.mark.parametrize("make", [lambda s: Lines(s), lambda s: Live(s)], ids=["lines", "live"])
def test_advance_before_any_stage_is_harmless(make):
    with make(Terminal()) as progress:
        progress.advance(3)


def test_the_live_display_leaves_stages_and_notes():
    stream = Terminal()
    work(Live(stream))
    text = stream.getvalue()
    assert "embed: done in 0.0 s" in text
    assert "[bold] is no markup · não é" in text


LANES = [
    Lane("shared", 45_000, 100_000, 1.234, 1.31, 8_100.0),
    Lane("returns-refunds-and-much-longer", 4_000, 40_000, 0.93, None, 1_000.0),
    Lane("cards", 10_000, 10_000, 0.5, None, 900.0, "done"),
    Lane("legal", 1_000, 40_000, 12.5, None, None, "failed"),
]


def running():
    stage = Stage("train experts", 100_000)
    stage.began -= 400
    stage.advance(45_000, "step 210/466, loss 1.21")
    stage.lanes = LANES
    return stage


@pytest.mark.parametrize("width", [24, 30, 40, 59, 60, 87, 88, 140])
def test_no_line_wraps_and_numbers_stay_whole(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(stage_line(running(), width))
    console.print(lanes_table(LANES, width))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2 + len(LANES)
    assert max(map(len, lines)) <= width
    assert "45%" in lines[0] and "left" in lines[0]
    assert "1.23" in lines[2] and "0:07" in lines[2]  # 55,000 tokens at 8,100 a second
    assert lines[3].split()[-1] == "0:36" or width >= 88
    assert "done" in lines[4] and "failed" in lines[5]
    assert ("8,100" in lines[2] and "1.31" in lines[2]) == (width >= 60)


def test_a_low_terminal_shows_those_that_still_move():
    live = Live(Terminal())
    live.console = Console(file=io.StringIO(), width=70, height=6, force_terminal=False)
    live.current = running()
    live.console.print(live._render())
    text = live.console.file.getvalue()
    assert "shared" in text and "returns" in text
    assert "cards" not in text
    assert "… and 2 more" in text
    assert text.count("\n") <= 6


def test_the_table_stays_when_the_stage_ends():
    stream = Terminal()
    with Live(stream) as progress:
        progress.stage("train", 10)
        progress.lanes([replace(lane, state="done") for lane in LANES])
        progress.advance(10)
    text = stream.getvalue()
    assert text.rindex("legal") < text.rindex("train: done in ")


def test_plain_lines_tell_each_lane():
    stream = io.StringIO()
    with Lines(stream, interval=0.0) as progress:
        progress.stage("train experts", 100_000)
        progress.lanes(LANES)
        progress.advance(45_000, "step 210/466")
        lines = stream.getvalue().splitlines()
    assert lines[1].startswith("train experts: 45%") and "0:36 left" in lines[1] and lines[1].endswith("step 210/466")
    assert lines[2].split() == ["shared", "45%", "loss", "1.23", "tune", "1.31", "8,100", "tokens/s", "0:07", "left"]
    assert lines[4].split() == ["cards", "100%", "loss", "0.50", "done"]
    assert lines[5].split() == ["legal", "2%", "loss", "12.50", "failed"]
    assert stream.getvalue().splitlines()[-1].startswith("train experts: done in ")


def test_plain_lines_grow_rare_in_a_long_stage(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Lines(stream)
    progress.stage("train", 12 * 3600)
    for now[0] in range(12 * 3600):
        progress.lanes(LANES)
        progress.advance(1)
    lines = stream.getvalue().splitlines()
    assert 100 < sum(line.startswith("train: ") for line in lines) < 160
    assert 20 < sum(line.startswith("  shared") for line in lines) < 40


def test_a_pace_is_that_of_the_last_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pace = Pace(1_000_000)  # resumed: these took no time here
    assert pace.per_second is None
    for second in range(1, 601):
        now[0] = second
        pace.reach(1_000_000 + second * (10 if second < 300 else 0) + max(0, second - 300) * 100)
    assert pace.per_second == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "0:07"), (723, "12:03"), (11045, "3:04:05")])
def test_a_clock_has_hours_when_it_needs_them(seconds, text):
    assert clock(seconds) == text
