"""Cells: clusters, known labels instead of them or around them, and a slice for what is like no other."""

from dataclasses import replace

import numpy as np
import pytest

from moe_router.config import SliceConfig
from moe_router.data.cells import Cells, field_values, make_cells
from moe_router.data.clusters import unit
from moe_router.data.records import Record
from moe_router.errors import InputError

DIMENSION = 24


def world(sizes, departments=None, spread=0.05, seed=0):
    """Training records around one axis per subject, their vectors, and the subject of each."""
    random = np.random.default_rng(seed)
    subject = np.repeat(np.arange(len(sizes)), sizes)
    vectors = unit(np.eye(DIMENSION)[subject] + spread * random.normal(size=(len(subject), DIMENSION)))
    records = [
        Record(f"{n}", f"about subject{at}", f"see topic{at}", split="train", meta=(departments or {}).get(at, {}))
        for n, at in enumerate(subject.tolist())
    ]
    return records, vectors, subject


def dept(name):
    return {"department": name}


def test_labels_are_the_slices_whatever_the_words_say():
    records, vectors, subject = world([40, 30, 30], {0: dept("HR"), 1: dept("HR"), 2: dept("IT")})
    cells, labels = make_cells(records, vectors, vectors, SliceConfig(by="department", min_records=10))
    assert cells.values == ("HR", "IT")
    assert (labels == (subject == 2)).all()
    assert cells.sizes == (70, 30)
    assert cells.assign(vectors[:1], ["IT"]) == 1, "a known value decides, not the vector"
    assert cells.assign(vectors[:1], [""]) == cells.assign(vectors[:1], ["Sales"]) == 0, "an unknown one does not"


def test_rare_and_missing_labels_go_to_other():
    records, vectors, subject = world([40, 40, 6, 6], {0: dept("HR"), 1: dept("IT"), 2: dept("Legal"), 3: {}})
    cells, labels = make_cells(records, vectors, vectors, SliceConfig(by="department", min_records=10))
    assert cells.other == 2
    assert cells.sizes == (40, 40, 12)
    assert (labels[subject >= 2] == 2).all()
    assert cells.assign(vectors[:2], ["Legal", "HR"]).tolist() == [2, 0]


def test_too_few_for_other_go_to_the_nearest():
    records, vectors, _ = world([40, 40, 3], {0: dept("HR"), 1: dept("IT")}, spread=0.2)
    cells, labels = make_cells(records, vectors, vectors, SliceConfig(by="department", min_records=10))
    assert cells.other == -1
    assert sum(cells.sizes) == 83 == len(labels)
    assert labels.min() >= 0


def test_labels_bound_clusters():
    records, vectors, subject = world([40, 40, 40], {0: dept("HR"), 1: dept("HR"), 2: dept("IT")})
    settings = SliceConfig(k=3, by="department", by_as="bounds", min_records=10)
    cells, labels = make_cells(records, vectors, vectors, settings)
    assert cells.values == ("HR", "HR", "IT")
    assert len(set(zip(subject.tolist(), labels.tolist(), strict=True))) == 3
    held = cells.assign(vectors[subject == 2][:5], ["HR"] * 5)
    assert set(held.tolist()) <= {0, 1}, "a cluster of another department's is none of theirs"
    with pytest.raises(InputError, match=r"k = 1 is fewer than the 2 values .*--by-as slices"):
        make_cells(records, vectors, vectors, replace(settings, k=1))


@pytest.mark.parametrize(("field", "message"), [("team", "no record has a field 'team'"), ("department", "no value of")])
def test_a_field_that_decides_nothing_is_an_error(field, message):
    records, vectors, _ = world([15, 15], {0: dept("HR"), 1: dept("IT")})
    with pytest.raises(InputError, match=message):
        make_cells(records, vectors, vectors, SliceConfig(by=field, min_records=20))


def test_records_like_no_other_form_a_slice_if_they_are_enough():
    records, vectors, _ = world([200, 200], spread=0.01)
    random = np.random.default_rng(1)
    strange = unit(np.concatenate([np.zeros((15, 2)), random.normal(size=(15, DIMENSION - 2))], 1))
    odd = [Record(f"odd {n}", f"thing{n}", f"what{n}", split="train") for n in range(15)]
    everything = np.concatenate([vectors, strange])
    settings = SliceConfig(k=2, min_records=10)
    cells, labels = make_cells([*records, *odd], everything, everything, settings)
    assert cells.other == 2
    assert (labels[400:] == 2).all() and (labels[:400] < 2).all()
    assert cells.assign(everything, [""] * 415)[[0, 399, 400]].tolist() == [labels[0], labels[399], 2]
    for none in (replace(settings, outliers=0.0), replace(settings, min_records=16)):
        assert make_cells([*records, *odd], everything, everything, none)[0].other == -1


def test_reach_holds_all_but_a_twentieth():
    records, vectors, _ = world([400], spread=0.3)
    cells, _ = make_cells(records, vectors, vectors, SliceConfig(k=1, min_records=10))
    assert (vectors @ cells.centers[0] < cells.reach[0]).mean() == pytest.approx(0.05, abs=0.01)


def test_assignment_in_parts_is_that_of_all(monkeypatch):
    _, vectors, _ = world([30, 30, 30], spread=0.5)
    cells = Cells(np.eye(3, DIMENSION, dtype=np.float32), np.zeros(3, np.float32), ("a", "b", ""), (1, 1, 1))
    values = [("a", "b", "", "c")[n % 4] for n in range(90)]
    whole = cells.assign(vectors, values)
    monkeypatch.setattr("moe_router.data.cells._CHUNK", 7)
    assert (cells.assign(vectors, values) == whole).all()


def test_a_missing_field_is_an_empty_value():
    records = [Record("1", "p", "r", meta={"team": " A "}), Record("2", "p", "r")]
    assert field_values(records, "team") == ["A", ""]
    assert field_values(records, "") == ["", ""]
