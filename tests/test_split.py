"""Splitting: exact shares, whole groups, declared splits honoured, order of no account."""

import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from moe_router.config import DataConfig
from moe_router.data.clean import clean
from moe_router.data.cleaning.text import jaccard, shingles, words
from moe_router.data.readers import read_file
from moe_router.data.records import Message, Record
from moe_router.data.shelf import hash64
from moe_router.data.split import group_records, prompt_key, sample_groups, split_records

DATA = DataConfig()


def record(number, prompt=None, split="", conversation=None, history=()):
    prompt = f"question {number}" if prompt is None else prompt
    return Record(f"{number:04}", prompt, "answer", history, split, f"f:{number}", conversation or f"f:{number}")


def split(records, settings=DATA):
    return split_records(group_records(records), settings)


def counts(records):
    return dict(Counter(r.split for r in records))


def test_shares_are_exact():
    assert counts(split([record(n) for n in range(1000)])) == {"train": 680, "gate": 120, "tune": 80, "test": 120}


def test_order_is_of_no_account_and_the_seed_is():
    records = [record(n, prompt=f"q {n // 3}") for n in range(300)]
    mixed = random.Random(1).sample(records, len(records))

    def where(found):
        return {r.id: (r.split, r.group) for r in found}

    assert where(split(records)) == where(split(mixed))
    other = split(records, DataConfig(seed=1))
    assert where(split(records)) != where(other)
    assert counts(split(records)) == counts(other)


def test_groups_are_chains_of_equal_prompts_and_conversations():
    first = (Message("system", "s"), Message("user", "Where is it?"), Message("assistant", "Here."))
    records = [
        record(1, "WHERE is it"),
        record(2, "And now?", conversation="c", history=first),
        record(3, "Something else", conversation="c"),
        record(4, "something, else!"),
        record(5, "And now?"),
    ]
    groups = [r.group for r in group_records(records)]
    assert groups == ["0001", "0001", "0001", "0001", "0005"]


def test_a_dropped_duplicate_still_links_its_conversations():
    records = [record(1, conversation="a"), record(2, conversation="b"), record(3)]
    assert [r.group for r in group_records(records, np.array([[hash64("a"), hash64("b")]]))] == ["0001", "0001", "0003"]


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("Como  faço?", "COMO FAÇO", True),
        ("e-mail", "email", True),
        ("faço", "faco", False),
        ("कि", "का", False),
        ("C++", "C", False),
        ("???", "!!", False),
    ],
)
def test_prompt_keys(one, two, same):
    assert (prompt_key(record(1, one)) == prompt_key(record(2, two))) is same


def test_no_group_crosses_and_large_groups_leave_shares_close():
    chooser = random.Random(0)
    records = [record(n, conversation=f"c{chooser.randrange(60)}") for n in range(600)]
    found = split(records)
    homes = {}
    assert all(homes.setdefault(r.group, r.split) == r.split for r in found)
    for name, share in (("gate", 0.12), ("tune", 0.08), ("test", 0.12)):
        assert 0.7 * share <= counts(found)[name] / 600 <= share


def test_declared_splits_are_honoured_and_undeclared_divided_without_test():
    records = [record(n, split="test" if n < 100 else "") for n in range(540)]
    found = split(records)
    assert {r.id for r in found if r.split == "test"} == {f"{n:04}" for n in range(100)}
    assert counts(found) == {"test": 100, "gate": 60, "tune": 40, "train": 340}


def test_gate_and_tune_are_carved_out_of_declared_train():
    records = [record(n, split="test" if n < 100 else "train") for n in range(540)]
    assert counts(split(records)) == {"test": 100, "gate": 60, "tune": 40, "train": 340}


def test_every_missing_split_is_carved_when_only_train_is_declared():
    assert counts(split([record(n, split="train") for n in range(1000)])) == {
        "train": 680,
        "gate": 120,
        "tune": 80,
        "test": 120,
    }


def test_declared_tune_is_not_filled_up_from_train():
    records = [record(n, split="test" if n < 40 else "tune" if n < 50 else "train") for n in range(490)]
    found = split(records)
    assert {r.id for r in found if r.split == "tune"} == {f"{n:04}" for n in range(40, 50)}
    assert counts(found)["gate"] == round(440 * 0.12 / 0.88)


def test_a_declared_test_record_pulls_its_group():
    records = [record(n, split="train") for n in range(100)]
    records += [record(200, "question 7!", split="test"), record(201, "elsewhere", conversation="f:7")]
    found = {r.id: r.split for r in split(records)}
    assert found["0200"] == found["0007"] == found["0201"] == "test"


def test_a_few_large_groups_still_fill_every_split():
    found = split([record(n, conversation=f"c{n // 20}") for n in range(100)])
    assert counts(found) == {"train": 40, "gate": 20, "tune": 20, "test": 20}


def test_samples_are_whole_groups_by_seed():
    records = group_records([record(n, conversation=f"c{n // 3}") for n in range(300)])
    some = sample_groups(records, 100, 0)
    assert len(some) == 99
    assert all(count == 3 for count in Counter(r.group for r in some).values())
    assert {r.id for r in some} == {r.id for r in sample_groups(records[::-1], 100, 0)}
    assert {r.id for r in some} != {r.id for r in sample_groups(records, 100, 1)}
    assert sample_groups(records, 0, 0) == records == sample_groups(records, 300, 0)


BITEXT = Path(__file__).parents[2] / "shared" / "data" / "bitext_support.jsonl"


def near_pairs(records):
    """Pairs of records with prompts of a Jaccard similarity of 0.8 or more, by comparing all that share a shingle."""
    sets = [shingles(words(record.prompt)) for record in records]
    holders = defaultdict(set)
    for at, one in enumerate(sets):
        for shingle in one:
            holders[shingle].add(at)
    for at, one in enumerate(sets):
        for other in {found for shingle in one for found in holders[shingle] if found > at}:
            if jaccard(one, sets[other]) >= 0.8:
                yield records[at], records[other]


@pytest.mark.skipif(not BITEXT.exists(), reason="shared/data/bitext_support.jsonl is not there")
def test_no_near_duplicate_crosses_the_splits_of_real_requests():
    kept = clean(read_file(BITEXT, DataConfig(), "bitext").items).records
    records = split_records(group_records(kept), DataConfig())
    pairs = list(near_pairs(records))
    assert len(pairs) > 20
    assert [(one.prompt, two.prompt) for one, two in pairs if one.split != two.split] == []
    assert len({record.split for record in records}) == 4


def test_near_duplicate_prompts_share_a_group_and_others_do_not():
    long = "posso devolver uma mesa que comprei em Évora no mês passado sem a caixa"
    made = [
        Record(str(n), prompt, f"r{n}", group=str(n)) for n, prompt in enumerate((long, f"Olá, {long}?", "posso devolver?"))
    ]
    one, two, three = group_records(made)
    assert one.group == two.group != three.group
