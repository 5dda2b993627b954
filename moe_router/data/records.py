"""The record, the one shape that every reader produces and every later stage consumes, and its Parquet form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moe_router.errors import WorkspaceError
from moe_router.workspace import atomic

SPLITS = ("train", "gate", "tune", "test")
"""train: experts; gate: the gate's targets; tune: every choice of a setting; test: read once, by the report."""


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


def save_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as Parquet, atomically, one row each in the order given."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "id": r.id,
            "prompt": r.prompt,
            "response": r.response,
            "history": [{"role": m.role, "content": m.content} for m in r.history],
            "split": r.split,
            "source": r.source,
            "group": r.group,
            "meta": json.dumps(r.meta, ensure_ascii=False, sort_keys=True),
        }
        for r in records
    ]
    text = pa.string()
    turn = pa.struct([("role", text), ("content", text)])
    schema = pa.schema(
        [
            ("id", text),
            ("prompt", text),
            ("response", text),
            ("history", pa.list_(turn)),
            ("split", text),
            ("source", text),
            ("group", text),
            ("meta", text),
        ]
    )
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def load_records(path: Path) -> list[Record]:
    """Read what `save_records` wrote. Raises WorkspaceError when the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
        return [
            Record(
                id=row["id"],
                prompt=row["prompt"],
                response=row["response"],
                history=tuple(Message(m["role"], m["content"]) for m in row["history"]),
                split=row["split"],
                source=row["source"],
                group=row["group"],
                meta=json.loads(row["meta"]),
            )
            for row in rows
        ]
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise WorkspaceError(f"{path} is damaged: run `moe-router prepare` again ({error})") from error


def of_split(records: Sequence[Record], split: str) -> list[Record]:
    """The records of one split, in order."""
    return [record for record in records if record.split == split]
