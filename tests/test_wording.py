"""Directions that texts of any subject share are taken out where that tells more about rare words, and only there."""

import numpy as np

from moe_router.config import SliceConfig
from moe_router.data.clusters import unit
from moe_router.data.wording import nats_saved, shared_directions

SETTINGS = SliceConfig(k=7, min_records=1)


def world(loud, seed=0):
    """Vectors of 7 subjects with two ways of asking that are `loud`, and answers with words of the subject."""
    random = np.random.default_rng(seed)
    subject, way = np.arange(350) % 7, (np.arange(350) // 7) % 2
    vectors = np.eye(16)[subject] + loud * np.outer(2 * way - 1, np.eye(16)[15]) + 0.02 * random.normal(size=(350, 16))
    answers = [f"please note number{random.integers(5)} of topic{s} about matter{s}" for s in "abcdefg" * 50]
    return unit(vectors), answers


def test_loud_wording_is_taken_out():
    vectors, answers = world(loud=3.0)
    assert shared_directions(vectors, vectors, answers, SETTINGS) >= 1


def test_directions_of_the_subjects_stay():
    random = np.random.default_rng(0)
    subject = np.arange(420) % 7
    angles = 2 * np.pi * subject / 7  # on a circle: the two strongest directions are all that tells subjects apart
    plane = np.stack([np.cos(angles), np.sin(angles)], 1)
    vectors = unit(np.pad(plane, ((0, 0), (0, 14))) + 0.05 * random.normal(size=(420, 16)))
    answers = [f"note of topic{s} about matter{s}" for s in "abcdefg" * 60]
    assert shared_directions(vectors, vectors, answers, SETTINGS) == 0


def test_without_words_or_choice_nothing_is_compared():
    vectors, _ = world(loud=3.0)
    assert shared_directions(vectors, vectors, ["…"] * 350, SETTINGS) == 2
    assert shared_directions(vectors, vectors, ["a b c"] * 350, SliceConfig(k=2)) == 0


def test_nats_saved_are_those_of_the_right_labels():
    from sklearn.feature_extraction.text import CountVectorizer

    labels = np.arange(400) % 4 // 2
    counts = CountVectorizer().fit_transform([f"word{label} " * 5 for label in labels])
    random = np.random.default_rng(0).permutation(labels)
    assert nats_saved(counts, labels) > 0.5 > abs(nats_saved(counts, random))
