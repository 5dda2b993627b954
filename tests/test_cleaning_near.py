"""Near-duplicate groups against comparing every pair."""

import random
from itertools import combinations

import pytest

from moe_router.data.cleaning import near as module
from moe_router.data.cleaning.near import THRESHOLD, near, near_groups
from moe_router.data.cleaning.text import jaccard, shingles, words


def prompts(count, seed):
    """Texts with many near and not quite near relatives."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        if made and rng.random() < 0.6:
            tokens = rng.choice(made).split()
            for _ in range(rng.randint(1, 3)):
                tokens[rng.randrange(len(tokens))] = f"ção{rng.randrange(50)}"
            made.append(" ".join(tokens))
        else:
            made.append(" ".join(f"w{rng.randrange(400)}" for _ in range(rng.randint(1, 60))))
    return made


def every_pair(texts):
    """The groups by definition."""
    sets = [shingles(words(text)) for text in texts]
    label = list(range(len(texts)))
    for one, other in combinations(range(len(texts)), 2):
        if sets[one] and jaccard(sets[one], sets[other]) >= THRESHOLD and label[one] != label[other]:
            low, high = sorted((label[one], label[other]))
            label = [low if mark == high else mark for mark in label]
    return label


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_those_of_every_pair(seed):
    texts = prompts(300, seed)
    expected = every_pair(texts)
    assert len(set(expected)) < len(texts)
    assert near_groups(texts) == expected


def test_spilled_to_disk_the_groups_are_the_same(monkeypatch):
    texts = prompts(200, 7)
    expected = near_groups(texts)
    monkeypatch.setattr(module, "SPILL", 10)
    monkeypatch.setattr(module, "_BATCH", 16)
    assert near_groups(texts) == expected


def test_kinds_are_never_mixed():
    texts = ["one and the same text of several words"] * 4
    assert near_groups(texts) == [0, 0, 0, 0]
    assert near_groups(texts, [5, 6, 5, 2**64 - 1]) == [0, 1, 0, 3]


def test_texts_without_words_join_nothing():
    assert near_groups(["", "?!", "…", "a", "A!"]) == [0, 1, 2, 3, 3]
    assert near_groups([]) == []


def test_a_chain_joins_its_ends():
    base = [f"w{n}" for n in range(60)]
    texts = [" ".join([*base[:2], f"x{n}", *base[3:]]) if n else " ".join(base) for n in range(3)]
    chain = [" ".join(base[n * 4 :] + [f"y{m}" for m in range(n * 4)]) for n in range(4)]
    assert set(near_groups(texts)) == {0}
    assert not near(chain[0], chain[3])
    assert set(near_groups(chain)) == {0}


def test_many_equal_texts_cost_little():
    assert near_groups(["o mesmo pedido de sempre, por favor"] * 20_000) == [0] * 20_000
