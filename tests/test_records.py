"""Records to Parquet and back."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_router.data.records import Message, Record, load_records, save_records
from moe_router.errors import WorkspaceError

RECORDS = [
    Record("1", "Olá?\nTudo bem?", "Sim ✓", (Message("system", "s"), Message("user", "a")), "train", "f:1", "g", {"é": "ü"}),
    Record("2", "q", "r"),
]


def test_round_trip(tmp_path):
    save_records(tmp_path / "new" / "records.parquet", RECORDS)
    assert load_records(tmp_path / "new" / "records.parquet") == RECORDS


def test_no_records_round_trip(tmp_path):
    save_records(tmp_path / "records.parquet", iter(()))
    assert load_records(tmp_path / "records.parquet") == []


def test_messages_end_with_the_prompt():
    assert RECORDS[0].messages == (Message("system", "s"), Message("user", "a"), Message("user", "Olá?\nTudo bem?"))


def test_damage_is_named(tmp_path):
    path = tmp_path / "records.parquet"
    save_records(path, RECORDS)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(WorkspaceError, match=r"records\.parquet is damaged: run `moe-router prepare` again"):
        load_records(path)


def test_another_table_is_named(tmp_path):
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "records.parquet")
    with pytest.raises(WorkspaceError, match="is damaged"):
        load_records(tmp_path / "records.parquet")
