"""Sheets for people to rate: blind, whole, and counted right."""

import csv
import io
import json

import pytest
from click.testing import CliRunner

from moe_router.cli import main
from moe_router.errors import InputError
from moe_router.report.blind import CHOICE, Sheet, kappa, rate, sign_test, wilson

ARMS = ("gate_top2", "dense_active")
ROWS = [
    {"question": f"Question {i}?", "answers": {"base": "?", "gate_top2": f"ours {i}", "dense_active": f"theirs {i}"}}
    for i in range(30)
]
SAME = {"question": "Same?", "answers": {"gate_top2": "yes", "dense_active": " yes "}}


def table(path):
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))


def fill(folder, choose, name="filled.csv", delimiter=","):
    """A rater who prefers what `choose` says of (question, answer A, answer B)."""
    head, *rows = table(folder / "sheet.csv")
    for row in rows:
        row[4] = choose(*row[1:4])
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([head, *rows])
    (folder / name).write_text(out.getvalue(), encoding="utf-8")
    return folder / name


@pytest.fixture
def folder(tmp_path):
    Sheet.of([*ROWS, SAME], ARMS, 20).save(tmp_path)
    return tmp_path


def test_no_file_for_raters_names_an_arm(folder):
    for name in ("sheet.csv", "sheet.html"):
        text = (folder / name).read_text(encoding="utf-8")
        assert not any(arm in text for arm in ARMS)
        assert sum(f"ours {i}" in text for i in range(30)) > 15


def test_sides_are_mixed_and_drawn_by_seed(folder):
    key = json.loads((folder / "key.json").read_text())
    assert 4 <= list(key["A"].values()).count("gate_top2") <= 16
    assert key["equal"] == 1
    assert Sheet.of(ROWS, ARMS, 20).pairs == Sheet.of(ROWS, ARMS, 20).pairs != Sheet.of(ROWS, ARMS, 20, seed=1).pairs


def test_ratings_are_counted_for_the_arm_and_not_for_the_side(folder):
    ours = fill(folder, lambda q, a, b: "A" if a.startswith("ours") else "b")
    found = rate([ours], folder / "key.json")
    assert (found.wins, found.ties, found.unrated) == ((20, 0), 0, 0)
    assert found.share == 1 and found.ci95[0] > 0.8 and found.p < 0.001
    assert found.agreement is None


def test_ties_blanks_and_several_raters(folder):
    one = fill(folder, lambda q, a, b: "=" if "5" in a else "A", "one.csv")
    other = fill(folder, lambda q, a, b: "" if "5" in a else "A", "other.csv", delimiter=";")
    found = rate([one, other], folder / "key.json")
    fives = sum("5" in pair.a for pair in Sheet.of([*ROWS, SAME], ARMS, 20).pairs)
    assert (found.ties, found.unrated, sum(found.wins)) == (fives, fives, 2 * (20 - fives))
    assert found.agreement == 1.0
    assert any("2 raters, kappa 1.00" in line for line in found.lines())


def test_nobody_preferring_anything_has_no_share(folder):
    found = rate([fill(folder, lambda q, a, b: "=")], folder / "key.json")
    assert (found.share, found.p, found.ties) == (None, None, 20)


@pytest.mark.parametrize(("text", "words"), [("number\n99\n", "'99' is not in the key"), (f'number,"{CHOICE}"\n1,C\n', "'C'")])
def test_a_wrong_sheet_is_named_with_its_row(folder, text, words):
    (folder / "wrong.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        rate([folder / "wrong.csv"], folder / "key.json")


def test_answers_are_text_and_never_markup_or_formula(tmp_path):
    rows = [{"question": "<b>?", "answers": {"a": "=1+1", "b": "<script>alert(1)</script>"}}]
    Sheet.of(rows, ("a", "b")).save(tmp_path)
    assert "'=1+1" in table(tmp_path / "sheet.csv")[1]
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<b>?" not in page
    assert "http" not in page


def test_references_are_shown_where_they_are_wanted(tmp_path):
    rows = [row | {"reference": "By post & only then"} for row in ROWS]
    Sheet.of(rows, ARMS, 3).save(tmp_path)
    assert "By post" not in (tmp_path / "sheet.html").read_text(encoding="utf-8")
    Sheet.of(rows, ARMS, 3, references=True).save(tmp_path)
    assert (tmp_path / "sheet.html").read_text(encoding="utf-8").count("By post &amp; only then") == 3
    assert [row[6] for row in table(tmp_path / "sheet.csv")[1:]] == ["By post & only then"] * 3


def test_what_cannot_be_compared_is_said():
    with pytest.raises(InputError, match="choose two of base, dense_active, gate_top2"):
        Sheet.of(ROWS, ("gate_top2", "oracle"))
    with pytest.raises(InputError, match="the same answer to all 1 questions"):
        Sheet.of([SAME], ARMS)


def test_the_statistics():
    assert sign_test(5, 5) == 1
    assert sign_test(0, 10) == pytest.approx(2 / 1024)
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)  # as tables have it
    assert kappa([{"1": "a", "2": "b"}, {"1": "b", "2": "a"}]) == pytest.approx(-1)
    assert kappa([{"1": "a"}, {"2": "a"}]) is None


def test_the_commands_write_and_count(tmp_path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "answers.json").write_text(json.dumps(ROWS), encoding="utf-8")
    made = CliRunner().invoke(main, ["blind", "sheet", "--workspace", str(tmp_path), "--questions", "5"])
    assert made.exit_code == 0 and "5 questions" in made.stdout, made.output
    folder = tmp_path / "reports" / "blind"
    filled = fill(folder, lambda q, a, b: "A" if a.startswith("ours") else "B")
    done = CliRunner().invoke(main, ["blind", "rate", str(filled), "--workspace", str(tmp_path)])
    assert "gate_top2 preferred 5 times, dense_active 0 times" in done.stdout, done.output
    wrong = CliRunner().invoke(main, ["blind", "sheet", "--arms", "one", "--workspace", str(tmp_path)])
    assert wrong.exit_code == 2
