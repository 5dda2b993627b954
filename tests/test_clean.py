"""Cleaning: text normalised, each rule by name, nothing lost."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_router.config import DataConfig
from moe_router.data.clean import FLAG, RULES, clean, sweep
from moe_router.data.cleaning import near
from moe_router.data.cleaning.text import tidy
from moe_router.data.records import Message
from moe_router.data.shelf import Shelf
from moe_router.data.split import group_records
from moe_router.data.turns import Item
from moe_router.errors import ConfigError


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


LONG = "where can I find the invoice of the order that I placed in the shop last week"


def rules(cleaned):
    return [(rejection.line, rejection.rule) for rejection in cleaned.rejected]


def test_a_near_duplicate_with_the_same_answer_is_dropped_and_counted():
    items = [item(LONG, "Under Orders."), item(f"Hello, {LONG}?", "under orders", 2, split="test")]
    cleaned = clean(items)
    assert rules(cleaned) == [(2, "near_duplicate")]
    assert cleaned.rejected[0].reason == "nearly equal to f.txt:1"
    assert cleaned.records[0].split == "test"
    assert rules(clean(items, DataConfig(near_duplicates="keep"))) == []


@pytest.mark.parametrize(
    "other",
    [
        item(f"Hello, {LONG}?", "In your account.", 2),
        item(f"{LONG}, order 12", "Under Orders.", 2),
        item(f"Hello, {LONG}?", "Under Orders.", 2, history=(Message("user", "Hi"), Message("assistant", "Hi"))),
        item("where is the invoice", "Under Orders.", 2),
    ],
)
def test_another_answer_figure_history_or_wording_is_no_near_duplicate(other):
    assert rules(clean([item(LONG, "Under Orders."), other])) == []


def test_of_contradictory_answers_the_one_given_most_often_stays():
    ask = "How long can I return it?"
    items = [item(ask, "14 days.", 1), item(ask, "Within 30 days.", 2), item(ask, "within 30 days.", 3)]
    cleaned = clean(items)
    assert [record.response for record in cleaned.records] == ["Within 30 days."]
    assert rules(cleaned) == [(3, "duplicate"), (1, "contradiction")]
    assert cleaned.rejected[1].reason == "30 ≠ 14: disagrees with f.txt:2"


def test_repairs_are_counted_not_rejected():
    damaged = "Não consigo aceder à conta".encode().decode("latin-1")
    cleaned = clean([item(damaged, "É aqui."), item("Olá, bom dia", "Olá!", 2)])
    assert [record.prompt for record in cleaned.records] == ["Não consigo aceder à conta", "Olá, bom dia"]
    assert cleaned.findings.repaired == 1


MAIL = item("My mail is ana@exemplo.pt", "Sent to ana@exemplo.pt and to help@acme.com.", meta={"owner": "ana@exemplo.pt"})


def test_personal_data_is_replaced_alike_in_the_whole_record():
    cleaned = clean([MAIL])
    (record,) = cleaned.records
    assert (record.prompt, record.response) == ("My mail is [EMAIL_1]", "Sent to [EMAIL_1] and to [EMAIL_2].")
    assert record.meta == {"owner": "[EMAIL_1]"}
    assert cleaned.findings.redacted == {"email": 4}


def test_placeholders_keep_their_number_through_a_conversation():
    first = item("Mine is ana@exemplo.pt", "And the other?", conversation="c")
    turns = (Message("user", first.prompt), Message("assistant", first.response))
    second = item("rui@exemplo.pt, not ana@exemplo.pt", "Noted.", 2, conversation="c", history=turns)
    one, two = clean([first, second]).records
    assert one.prompt == two.history[0].content == "Mine is [EMAIL_1]"
    assert two.prompt == "[EMAIL_2], not [EMAIL_1]"


def test_personal_data_dropped_kept_or_allowed():
    dropped = clean([MAIL], DataConfig(pii="drop"))
    assert rules(dropped) == [(1, "personal_data")]
    assert "ana@" not in dropped.rejected[0].text
    (kept,) = clean([MAIL], DataConfig(pii="keep")).records
    assert kept.prompt == MAIL.prompt
    (allowed,) = clean([MAIL], DataConfig(pii_allow="@ACME.com, x")).records
    assert allowed.response == "Sent to [EMAIL_1] and to help@acme.com."


def test_what_is_rejected_does_not_leak_personal_data():
    ask = "Which number do I call?"
    cleaned = clean([item(ask, "Call 912 345 678."), item(ask, "Call 913 456 789.", 2), item("ana@exemplo.pt", "", 3)])
    assert rules(cleaned) == [(2, "contradiction"), (3, "empty_response")]
    assert not any(digit in "".join(r.text + r.reason for r in cleaned.rejected) for digit in ("913", "456", "ana@"))
    assert "personal data differs" in cleaned.rejected[0].reason


def test_over_long_records_are_rejected():
    assert rules(clean([item("a" * 60, "b" * 41), item("c" * 60, "d" * 40, 2)], DataConfig(max_chars=100))) == [
        (1, "over_long")
    ]


def test_languages_are_counted_and_only_reject_when_asked():
    items = [
        item("Onde está a minha encomenda de ontem?", "Está a caminho."),
        item("Where is the order that I placed?", "On its way.", 2),
        item("ok", "ok", 3),
    ]
    assert clean(items).findings.languages == {"pt": 1, "en": 1, "unknown": 1}
    assert rules(clean(items, DataConfig(languages="pt"))) == [(2, "language")]
    with pytest.raises(ConfigError, match="klingon"):
        clean(items, DataConfig(languages="pt,klingon"))
    with pytest.raises(ConfigError, match="ATLANTIS"):
        clean(items, DataConfig(pii_regions="pt,atlantis"))


def test_answers_that_repeat_themselves_are_flagged_and_stay():
    cleaned = clean([item("Tell me about the support", "please contact our support team today " * 8), item("a", "b", 2)])
    assert [record.meta.get(FLAG) for record in cleaned.records] == ["the answer repeats itself", None]
    assert cleaned.findings.repetitive == 1
    assert not cleaned.rejected


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=20))
def test_records_in_are_records_kept_plus_rejected(pairs):
    cleaned = clean([item(prompt, response, line) for line, (prompt, response) in enumerate(pairs, 1)])
    lines = [int(record.source.rpartition(":")[2]) for record in cleaned.records]
    assert sorted([*lines, *(rejection.line for rejection in cleaned.rejected)]) == list(range(1, len(pairs) + 1))
    assert {rejection.rule for rejection in cleaned.rejected} <= set(RULES)


def test_memory_does_not_grow_with_the_number_of_records(monkeypatch):
    """Python's own allocations: what the shelf and the signatures hold on disk or outside is bounded elsewhere."""

    def peak(count):
        items = (item(f"how is the matter number{n} of place{n % 97}?", f"It is answer {n}. " * 20, n) for n in range(count))
        tracemalloc.start()
        with Shelf() as shelf:
            sweep(items, DataConfig(pii="keep"), shelf, lambda _: None)
            assert len(shelf) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    monkeypatch.setattr(near, "_BATCH", 64)
    peak(20)  # whatever is loaded once
    assert (peak(900) - peak(300)) / 600 < 1024  # bytes a record, signatures included; a record itself has 600
