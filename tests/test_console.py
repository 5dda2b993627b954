"""Progress on a terminal, without one, and quiet."""

import io

import pytest

from moe_router.console import Lines, Live, Quiet, reporter


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


def test_the_live_bar_shows_stages_and_notes():
    stream = Terminal()
    work(Live(stream))
    text = stream.getvalue()
    assert "embed" in text
    assert "100 %" in text
    assert "[bold] is no markup · não é" in text
