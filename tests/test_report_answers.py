"""What counts as a right answer."""

import pytest

from moe_router.data.records import Record
from moe_router.report.answers import _checkable, final_answer


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("48/2 = 24 clips.\n#### 72", "She sold 72.\n#### 72"),
        ("#### 1,080", "#### 1080"),
        ("-22.22%\nDerivation: (44.1-56.7)/56.7", "-22.22%"),
        ("  Não. ", "não"),
        ("The answer is 12.", "the answer is 12"),
        ("２０１９", "2019"),
    ],
)
def test_equal_answers_in_other_clothes(answer, reference):
    assert final_answer(answer) == final_answer(reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("1.5", "15"), ("-3", "3"), ("40%", "40"), ("2019; 2018", "2019"), ("", "0"), ("#### 7", "7 #### 8"), ("avô", "avó")],
)
def test_other_answers_are_not_equal(answer, reference):
    assert final_answer(answer) != final_answer(reference)


def records(*responses):
    return [Record(str(i), "?", response) for i, response in enumerate(responses)]


def test_only_data_with_short_or_final_answers_can_be_checked():
    essay = "This is a rather long answer that nobody would ever repeat word for word."
    assert _checkable(records("2019", "12 million", "yes", essay))
    assert _checkable(records(f"{essay}\n#### 4", f"{essay}\n#### 5"))
    assert not _checkable(records(essay, essay, "yes"))
    assert not _checkable([])
