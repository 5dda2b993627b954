"""Hugging Face datasets, from folders: nothing is downloaded here."""

import json
from pathlib import Path

import pytest
from intake import DATA, pairs

from moe_router.data.readers import expand
from moe_router.errors import InputError

datasets = pytest.importorskip("datasets")
ROWS = {
    "train": [{"question": "Situação?", "answer": "Não."}, {"question": "b", "answer": "c"}],
    "test": [{"question": "d", "answer": "e"}],
}


def test_a_saved_dataset_keeps_its_splits(tmp_path):
    datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in ROWS.items()}).save_to_disk(tmp_path / "d")
    train, test = expand([tmp_path / "d"], DATA, name=lambda path: path.name)
    assert pairs(train) == pairs(train) == [("Situação?", "Não."), ("b", "c")]
    assert [(item.line, item.split) for item in (*train.items, *test.items)] == [(1, "train"), (2, "train"), (1, "test")]
    assert train.note.endswith("prompt from 'question', response from 'answer'")
    assert train.digest() == test.digest()


def test_a_saved_split_alone(tmp_path):
    datasets.Dataset.from_list(ROWS["train"]).save_to_disk(tmp_path / "d")
    (source,) = expand([tmp_path / "d"], DATA)
    assert len(pairs(source)) == 2


def test_a_folder_as_the_hub_lays_it_out(tmp_path):
    (tmp_path / "data").mkdir()
    for name, rows in ROWS.items():
        (tmp_path / "data" / f"{name}-00000-of-00001.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    from pathlib import Path

    found = expand([Path(f"hf:{tmp_path}")], DATA)
    assert {source.split: len(source.items) for source in found} == {"train": 2, "test": 1}


def test_what_does_not_open_is_named_in_one_line(tmp_path):
    from pathlib import Path

    (tmp_path / "d").mkdir()
    with pytest.raises(InputError, match=r"is no dataset that opens|cannot be opened as a dataset") as refused:
        expand([Path(f"hf:{tmp_path}/d")], DATA)
    assert "\n" not in str(refused.value)


def test_a_prefix_alone_names_no_dataset():
    with pytest.raises(InputError, match="names no dataset: give hf:owner/name"):
        expand([Path("hf:")], DATA)
