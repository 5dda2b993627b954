"""Synthetic records train, up to their share, and are held out of every other split."""

import json
from collections import Counter

import pytest

from moe_router.config import Config
from moe_router.data.prepare import prepare
from moe_router.data.records import is_synthetic, load_records
from moe_router.errors import InputError
from moe_router.workspace import Workspace

DISTINCT = "Onde está a encomenda {n} que fiz na loja da rua {n} antes do Natal, por favor?"


def export(path, real=200, synthetic=100, like=0):
    """Real records, synthetic ones, and `like` synthetic ones that open like a real one."""
    rows = [{"prompt": DISTINCT.format(n=n), "response": f"Está no armazém {n}."} for n in range(real)]
    rows += [{"prompt": f"made up {n}?", "response": f"as {n}", "synthetic": "a-model"} for n in range(synthetic)]
    rows += [{"prompt": DISTINCT.format(n=n), "response": f"Invento {n}.", "synthetic": "a-model"} for n in range(like)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def prepared(tmp_path, name="a", settings=None, **rows):
    workspace = Workspace(tmp_path / name)
    made = prepare(workspace, [export(tmp_path / f"{name}.jsonl", **rows)], Config().override({"data": settings or {}}))
    return made, load_records(workspace.records), workspace


def test_they_train_only_up_to_their_share(tmp_path):
    made, records, workspace = prepared(tmp_path)
    train = [record for record in records if record.split == "train"]
    synthetic = [record for record in records if is_synthetic(record)]
    assert {record.split for record in synthetic} == {"train"}
    assert len(synthetic) <= 0.3 * len(train) < len(synthetic) + 1
    assert made.reasons == {"synthetic": 100 - len(synthetic)}
    assert made.records + made.rejected == 300
    assert made.findings["synthetic"] == len(synthetic)
    assert any("are synthetic" in note for note in made.notes)
    assert len(workspace.rejected.read_text().splitlines()) == made.rejected


def test_real_records_are_split_as_if_there_were_none(tmp_path):
    with_them = {record.id: record.split for record in prepared(tmp_path, "a")[1] if not is_synthetic(record)}
    without = {record.id: record.split for record in prepared(tmp_path, "b", synthetic=0)[1]}
    assert with_them == without


def test_one_like_a_held_out_record_is_rejected(tmp_path):
    _, records, workspace = prepared(tmp_path, synthetic=0, like=60, settings={"synthetic_share": 0.9, "pii": "keep"})
    held = {record.prompt for record in records if record.split != "train"}
    mine = {record.prompt for record in records if is_synthetic(record)}
    refused = [json.loads(line) for line in workspace.rejected.read_text(encoding="utf-8").splitlines()]
    assert not held & mine
    assert {line["text"].split("\n")[0] for line in refused if line["rule"] == "synthetic"} <= held
    assert Counter(line["rule"] for line in refused)["synthetic"] > 5


def test_none_are_wanted_or_nothing_else_is_there(tmp_path):
    _, records, _ = prepared(tmp_path, "a", settings={"synthetic_share": 0.0})
    assert not any(map(is_synthetic, records))
    with pytest.raises(InputError, match=r"only 0 of 100 records are left .*100 synthetic"):
        prepared(tmp_path, "b", real=0)


def test_a_column_that_says_no_marks_nothing(tmp_path):
    rows = [{"prompt": DISTINCT.format(n=n), "response": f"r {n}", "synthetic": "false"} for n in range(60)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = prepare(Workspace(tmp_path / "c"), [tmp_path / "c.jsonl"], Config())
    assert (made.records, made.findings["synthetic"]) == (60, 0)
