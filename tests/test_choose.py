"""k by held-out benefit: judged by word statistics, which are a language model too, and by adapters on the embedded base."""

from dataclasses import replace

import numpy as np
import pytest

from moe_router.config import Config, SliceConfig
from moe_router.data.choose import choose_k
from moe_router.data.clusters import unit
from moe_router.data.records import Record
from moe_router.errors import ConfigError, InputError
from moe_router.experts.probe import AdapterProbe
from moe_router.progress import Silent


class Unigrams:
    """A probe with a smoothed unigram model for each slice in the place of an adapter."""

    def __init__(self):
        self.tried = []

    def nats(self, train, labels, held, held_labels, k):
        self.tried.append(k)
        vocabulary = {word: at for at, word in enumerate(sorted({w for r in (*train, *held) for w in r.response.split()}))}

        def counts(records):
            table = np.zeros((len(records), len(vocabulary)))
            for row, record in enumerate(records):
                for word in record.response.split():
                    table[row, vocabulary[word]] += 1
            return table

        seen, asked = counts(train), counts(held)
        models = np.stack([seen[labels == label].sum(0) + 0.5 for label in range(k)])
        models /= models.sum(1, keepdims=True)
        return -(asked * np.log(models[held_labels])).sum(1), asked.sum(1)


def world(subjects, each=60, words=6):
    """Records whose answers use words of their own subject, a third of them for tuning, and their vectors."""
    random = np.random.default_rng(0)
    records, axes = [], []
    for n in range(subjects * each):
        subject = n % subjects
        answer = " ".join(f"w{subject}x{random.integers(8)}" for _ in range(words))
        records.append(Record(f"{n}", f"q {n}", answer, split="tune" if (n // subjects) % 3 == 0 else "train"))
        axes.append(subject)
    vectors = unit(np.eye(16)[axes] + 0.05 * random.normal(size=(len(axes), 16)))
    return records, vectors, vectors[[record.split == "train" for record in records]]


SETTINGS = SliceConfig(k=0, min_records=5)


def test_the_number_of_subjects_is_found():
    probe = Unigrams()
    chosen, curve = choose_k(*world(4), SETTINGS, probe, Silent())
    assert chosen.k == 4 == next(tried.k for tried in curve if tried.chosen)
    assert [tried.k for tried in curve] == probe.tried
    by_k = {tried.k: tried for tried in curve}
    assert by_k[1].gain == 0 == by_k[1].error
    assert by_k[4].gain > by_k[2].gain > 0.3
    assert by_k[4].gain == pytest.approx(1 - by_k[4].perplexity / by_k[1].perplexity)


def test_one_slice_where_more_gain_nothing():
    chosen, curve = choose_k(*world(1, each=240), SETTINGS, Unigrams(), Silent())
    assert chosen.k == 1
    assert all(tried.gain < 0.05 for tried in curve)


def test_slices_too_small_for_an_expert_are_not_tried():
    probe = Unigrams()
    choose_k(*world(4), replace(SETTINGS, min_records=30), probe, Silent())
    assert max(probe.tried) <= 4


def test_equal_input_gives_an_equal_curve():
    once, again = (choose_k(*world(3), SETTINGS, Unigrams(), Silent()) for _ in range(2))
    assert once == again


def test_too_little_to_tell_is_an_error():
    records, vectors, answers = world(2, each=20)
    with pytest.raises(InputError, match=r"14 tune records are too few .* set slice\.k"):
        choose_k(records, vectors, answers, SETTINGS, Unigrams(), Silent())


def test_without_a_probe_k_must_be_given(tmp_path):
    from moe_router.data.records import save_records
    from moe_router.data.slices import slice_records
    from moe_router.workspace import Workspace

    workspace = Workspace(tmp_path)
    save_records(workspace.records, world(2)[0])
    with pytest.raises(ConfigError, match="needs a probe"):
        slice_records(workspace, Config(slice=SETTINGS))


def test_adapters_measure_what_their_slices_gain():
    facts = {0: "The rug costs nine euros.", 1: "Payroll runs on Friday."}
    records = [Record(f"{n}", ("How much is the rug?", "When is payroll?")[n % 2], facts[n % 2]) for n in range(24)]
    labels = np.arange(24) % 2
    probe = AdapterProbe(Config().override({"experts": {"epochs": 1.0}}))
    nats, tokens = probe.nats(records[:16], labels[:16], records[16:], labels[16:], 2)
    wrong, _ = probe.nats(records[:16], labels[:16], records[16:], 1 - labels[16:], 2)
    assert nats.shape == tokens.shape == (8,)
    assert nats.sum() < wrong.sum()
