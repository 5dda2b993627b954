"""The sample company: committed and generated files agree, and every rule that its records promise holds."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_router.config import Config
from moe_router.data.prepare import prepare
from moe_router.data.records import load_records
from moe_router.data.sample import company_name, facts, key_fact_found, write_sample
from moe_router.data.sample.company import PHRASINGS, VALUES, questions
from moe_router.data.sample.exports import COLUMNS, TEST_RECORDS
from moe_router.data.sample.topics import TOPICS
from moe_router.data.sample.wordings import ANSWERED, ASKED, ASKED_LATER
from moe_router.workspace import Workspace

COMMITTED = Path(__file__).parent.parent / "data" / "sample"
SEEDS = range(5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("company"))
    write_sample(workspace.sample, 0)
    return prepare(workspace, [workspace.sample], Config()), load_records(workspace.records)


def test_the_committed_files_are_those_of_seed_0(tmp_path):
    exports = write_sample(tmp_path, 0)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in COMMITTED.iterdir()}
    assert sorted(path.name for path in exports) == ["chat.txt", "handbook.jsonl", "tickets.csv"]


def test_another_seed_is_another_company_of_the_same_structure():
    one, other = facts(0), facts(1)
    assert company_name(0) != company_name(1)
    assert [(f.department, f.names, f.kind) for f in one] == [(f.department, f.names, f.kind) for f in other]
    assert sum(a.value == b.value for a, b in zip(one, other, strict=True)) < 0.15 * len(one)
    assert {q.prompt for q in questions(0)} != {q.prompt for q in questions(1)}


def test_eight_departments_know_twenty_facts_each():
    known = facts(0)
    assert set(Counter(fact.department for fact in known).values()) == {20}
    assert len({(fact.names, fact.kind) for fact in known}) == len(known) == 160
    assert len(TOPICS) == 8


def test_departments_share_vocabulary():
    words = [{w for topic in topics for name in topic[:3] for w in name.split()} for topics in TOPICS.values()]
    shared = Counter(word for own in words for word in own)
    assert all(shared[word] >= 3 for word in ("orders", "cards", "requests"))
    assert all(shared[word] >= 2 for word in ("claims", "changes", "collection", "furniture"))


@pytest.mark.parametrize("seed", SEEDS)
def test_values_come_from_many_and_stand_in_the_answer_alone(seed):
    for question in questions(seed):
        fact = question.fact
        assert fact.value in VALUES[fact.kind]
        assert fact.value.casefold() not in question.prompt.casefold()
        assert key_fact_found(question.response, fact.value)
        assert len(fact.value.split()) <= 3


def test_every_kind_has_values_enough_and_wordings_of_its_own_for_the_test():
    assert set(VALUES) == set(ASKED) == set(ASKED_LATER) == set(ANSWERED)
    for kind, values in VALUES.items():
        assert len(set(values)) == len(values) >= 20
        assert not set(ASKED[kind]) & set(ASKED_LATER[kind])
        assert len(set(ASKED[kind])) >= PHRASINGS
        assert all(wording.count("{t}") == 1 for wording in (*ASKED[kind], *ASKED_LATER[kind]))


@pytest.mark.parametrize("seed", SEEDS)
def test_texts_are_short_and_no_prompt_comes_twice(seed):
    made = questions(seed)
    assert len({q.prompt.casefold() for q in made}) == len(made)
    assert max(len(text.split()) for q in made for text in (q.prompt, q.response)) <= 14
    assert all(text.isascii() for q in made for text in (q.prompt, q.response))


def test_cleaning_leaves_two_thousand_records_and_names_each_defect(prepared):
    result, records = prepared
    assert result.records >= 2000
    assert result.splits["test"] == TEST_RECORDS
    assert set(result.reasons) == {"duplicate", "empty_prompt", "empty_response", "unpaired_turn"}
    assert 0.01 < result.rejected / result.records < 0.05
    assert any("\n" in record.prompt for record in records)
    assert any(record.history for record in records)
    assert any(record.prompt[:1].islower() for record in records)


def test_every_fact_is_trained_on_and_tested_in_wordings_of_the_test_alone(prepared):
    _, records = prepared
    later = {q.prompt.casefold(): q.split for q in questions(0) if q.split}
    typed_well = [r for r in records if r.prompt.casefold() in later]
    assert all(r.split == later[r.prompt.casefold()] for r in typed_well)
    assert sum(r.split == "test" for r in typed_well) > 0.97 * TEST_RECORDS
    answers = {q.response: q.fact for q in questions(0)}
    for split in ("train", "test"):
        assert {answers[r.response] for r in records if r.split == split} == set(facts(0))
    assert all(key_fact_found(r.response, r.meta["key_fact"]) for r in records if r.split == "test")


@pytest.mark.parametrize("seed", SEEDS)
def test_later_questions_use_a_name_that_training_never_says(seed):
    made = questions(seed)
    trained = " ".join(q.prompt.casefold() for q in made if not q.split)
    later = [q for q in made if q.split]
    assert {q.split for q in later} == {"test", "tune", "gate"}
    assert all(q.fact.names[2].casefold() in q.prompt.casefold() for q in later)
    assert not any(q.fact.names[2].casefold() in trained for q in later)


def test_every_fact_has_one_answer():
    answers = {(q.fact.names, q.fact.kind, q.response) for q in questions(0)}
    assert len(answers) == len(facts(0))


def test_only_the_tables_say_what_is_for_later():
    later = {q.prompt for q in questions(0) if q.split}
    chat = (COMMITTED / "chat.txt").read_text(encoding="utf-8")
    assert not any(prompt in chat for prompt in later)
    with (COMMITTED / "tickets.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert {row["split"] for row in rows} == {"", "test", "tune", "gate"}
    lines = [json.loads(line) for line in (COMMITTED / "handbook.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line.get("split") for line in lines} == {None, "test", "tune", "gate"}


@pytest.mark.parametrize(
    ("answer", "key_fact", "found"),
    [
        ("You have 34 days.", "34 days", True),
        ("You have 34 days.", "4 days", False),
        ("Up to 1,540 euros.", "540 euros", False),
        ("Up to 540.50 euros.", "540", False),
        ("It is 3.4 days", "4 days", False),
        ("Monday at 8:30.", "Monday at 8", False),
        ("You have ３４\u00a0days.", "34 days", True),
        ("ASK ANA\n  reis!", "Ana Reis", True),
        ("Ask Anabel Reis.", "Ana Reis", False),
        ("Fala com a Inês Araújo.", "ine\u0302s arau\u0301jo", True),
        ("Fale com a Inês.", "Ine", False),
        ("For C++, ask Ana.", "C++", True),
        ("anything", "  ", False),
    ],
)
def test_key_facts_are_found_as_whole_words(answer, key_fact, found):
    assert key_fact_found(answer, key_fact) is found


@given(st.integers(1, 999), st.integers(1, 999))
def test_one_number_is_not_found_in_another(one, other):
    assert key_fact_found(f"You have {one} days.", f"{other} days") is (one == other)
