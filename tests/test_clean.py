"""Cleaning: text normalised, each rule by name, nothing lost."""

import pytest

from moe_router.data.clean import RULES, clean, tidy
from moe_router.data.records import Message
from moe_router.data.split import group_records
from moe_router.data.turns import Item


def item(prompt="p", response="r", line=1, **more):
    return Item("f.txt", line, prompt, response, **more)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  a  \r\nb\t\rc \n\n", "a\nb\nc"),
        ("ac\u0327a\u0303o", "ação"),
        ("a\x00b\x1bc\x7f", "abc"),
        ("a\u00a0\nb", "a\nb"),
        ("  code:\n    indented", "code:\n    indented"),
        ("\u200d\U0001f469", "\u200d\U0001f469"),
    ],
)
def test_tidy(raw, expected):
    assert tidy(raw) == expected
    assert tidy(expected) == expected


def test_long_runs_of_spaces_take_no_time():
    text = "a" + " " * 200_000 + "b"
    assert tidy(text) == text


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (item(prompt=" \n"), "empty_prompt"),
        (item(response="\x00 "), "empty_response"),
        (item().reject("malformed", "why"), "malformed"),
        (item(response="").reject("unpaired_turn", "why"), "unpaired_turn"),
    ],
)
def test_each_rule_names_file_line_and_reason(bad, rule):
    cleaned = clean([item("other"), bad])
    (rejection,) = cleaned.rejected
    assert (rejection.rule, rejection.file, rejection.line) == (rule, "f.txt", 1)
    assert rejection.reason and rule in RULES
    assert cleaned.reasons == {rule: 1}
    assert len(cleaned.records) == 1


def test_duplicates_ignore_case_and_spacing_but_not_history():
    history = (Message("user", "a"), Message("assistant", "b"))
    items = [item("Straße  1?", "Ja"), item("STRASSE 1?", "ja ", 2), item("Straße 1?", "Ja", 3, history=history)]
    cleaned = clean(items)
    assert [record.source for record in cleaned.records] == ["f.txt:1", "f.txt:3"]
    (rejection,) = cleaned.rejected
    assert (rejection.rule, rejection.line, rejection.reason) == ("duplicate", 2, "equal to f.txt:1")
    assert rejection.text == "STRASSE 1?\nja "


def test_the_copy_that_stays_takes_the_more_protected_split():
    (record,) = clean([item(split="tune"), item(split="test"), item(split="train"), item()]).records
    assert record.split == "test"


def test_a_rejected_copy_still_ties_its_conversation_to_the_first():
    talks = [item("Hi", "Hello", conversation="a"), item("hi", "hello", conversation="b"), item("Bye", "Bye", conversation="b")]
    cleaned = clean(talks)
    assert [record.group for record in cleaned.records] == ["a", "b"]
    assert len({record.group for record in group_records(cleaned.records, cleaned.links)}) == 1


def test_equal_records_have_equal_ids_wherever_they_come_from():
    one = clean([item("é", line=1, meta={"a": "b"})]).records[0]
    two = clean([Item("other.csv", 9, "e\u0301 ", "r")]).records[0]
    assert one.id == two.id != clean([item("É")]).records[0].id
    assert one.meta == {"a": "b"}
