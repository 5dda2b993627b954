"""The record, the one shape that every reader produces and every later stage consumes, and its Parquet form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from moe_router.errors import WorkspaceError
from moe_router.workspace import atomic

SPLITS = ("train", "gate", "tune", "test")
"""train: experts; gate: the gate's targets; tune: every choice of a setting; test: read once, by the report."""


SYNTHETIC = "synthetic"
"""Key of `meta` under which a record that a model wrote says which."""
BATCH = 4096
"""Records written or read at once."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`user`, `assistant` or `system`."""
    content: str


@dataclass(frozen=True)
class Record:
    """One prompt and its response, with what came before them in the conversation."""

    id: str
    """Digest of history, prompt and response: equal records have equal ids."""
    prompt: str
    response: str
    history: tuple[Message, ...] = ()
    """Earlier turns, oldest first; empty for single-turn records."""
    split: str = ""
    """One of SPLITS; empty until the prepare stage has split."""
    source: str = ""
    """`file:line` the record came from."""
    group: str = ""
    """Records of one group (a conversation, duplicates of one prompt) never cross splits."""
    meta: dict[str, str] = field(default_factory=dict)
    """Further fields of the source: department, key_fact, label, …"""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation up to and including the prompt."""
        return (*self.history, Message("user", self.prompt))


def first_turn(record: Record) -> str:
    """What the user opened the conversation with."""
    return next(message.content for message in record.messages if message.role == "user")


def is_synthetic(record: Record) -> bool:
    """Whether the record says that a model wrote it."""
    return record.meta.get(SYNTHETIC, "").strip().lower() not in ("", "0", "no", "false", "não", "nao")


def save_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as Parquet, atomically, one row each in the order given; BATCH of them are held at once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    turns = pa.list_(pa.struct([("role", text), ("content", text)]))
    kinds = {"history": turns}
    schema = pa.schema([(name, kinds.get(name, text)) for name in _COLUMNS])
    rest = iter(records)
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while batch := list(islice(rest, BATCH)):
            writer.write_table(pa.Table.from_pylist([_row(record) for record in batch], schema=schema))


_COLUMNS = ("id", "prompt", "response", "history", "split", "source", "group", "meta")


def _row(record: Record) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in _COLUMNS}
    row["history"] = [{"role": message.role, "content": message.content} for message in record.history]
    row["meta"] = json.dumps(record.meta, ensure_ascii=False, sort_keys=True)
    return row


def iter_records(path: Path) -> Iterator[Record]:
    """Records that `save_records` wrote, BATCH at a time. Raises WorkspaceError when the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(BATCH):
                for row in batch.to_pylist():
                    history = tuple(Message(turn["role"], turn["content"]) for turn in row["history"])
                    yield Record(**{**row, "history": history, "meta": json.loads(row["meta"])})
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise WorkspaceError(f"{path} is damaged: run `moe-router prepare` again ({error})") from error


def load_records(path: Path) -> list[Record]:
    """All records that `save_records` wrote. Raises WorkspaceError when the file is damaged."""
    return list(iter_records(path))
