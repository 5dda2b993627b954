"""Records on their way through cleaning and splitting: a temporary database, most of it on disk.

Memory stays the same however many records there are. SQLite keeps CACHE of it in memory, and puts the rest into a file of
its own in the folder for temporary files (TMPDIR), which is gone when the shelf is closed.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moe_router.data.records import SPLITS, Message, Record

if TYPE_CHECKING:
    import numpy as np

CACHE = 64
"""MiB of the database held in memory."""
DECLARED = ("", *SPLITS)
"""What a record may say its split is, from the least protected to the most."""
_TABLES = """
CREATE TABLE kept(
    row INTEGER PRIMARY KEY, likeness BLOB UNIQUE, asked BLOB, kind INTEGER, id INTEGER, conversation INTEGER,
    opening INTEGER, opening_text TEXT, prompt TEXT, raw TEXT, body TEXT, language TEXT, synthetic INTEGER, split INTEGER,
    support INTEGER
);
CREATE TABLE links(one INTEGER, other INTEGER);
"""
_INSERT = f"INSERT INTO kept VALUES (NULL{', ?' * 13}, 1)"


@dataclass(frozen=True)
class Entry:
    """A record as it arrives, with what it is compared by."""

    record: Record
    likeness: str
    """Hexadecimal digest of what duplicates have in common."""
    asked: str
    """The same of the conversation without its answer."""
    kind: int
    """What near-duplicates have in common besides their prompts, 64 bits."""
    opening: str
    """What the user opened the conversation with."""
    opening_key: str
    """The same for comparing."""
    raw: tuple[str, str]
    """Prompt and response as the source has them."""
    language: str
    synthetic: bool = False


@dataclass(frozen=True)
class Shelved:
    """A record on the shelf."""

    row: int
    record: Record
    raw: tuple[str, str]
    support: int
    """Records that said the same, this one included."""


class Shelf:
    """Records by row, numbered from 1 in the order in which they came."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in (f"cache_size = -{CACHE * 1024}", "journal_mode = OFF", "synchronous = OFF", "temp_store = FILE"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.executescript(_TABLES)
        self._database.execute("BEGIN")

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM kept").fetchone()[0]

    def find(self, likeness: str) -> Shelved | None:
        """The record that says the same, if there is one."""
        return next(self._shelved("likeness = ?", bytes.fromhex(likeness)[:16]), None)

    def get(self, row: int) -> Shelved:
        """The record of a row."""
        return next(self._shelved("row = ?", row))

    def put(self, entry: Entry) -> None:
        """Add a record that `find` does not know."""
        record = entry.record
        turns = [[message.role, message.content] for message in record.history]
        body = [record.id, record.response, turns, record.source, record.group, record.meta]
        same = entry.raw == (record.prompt, record.response)
        values = (
            bytes.fromhex(entry.likeness)[:16],
            bytes.fromhex(entry.asked)[:16],
            _signed(entry.kind),
            _signed(int(record.id, 16)),
            hash64(record.group),
            hash64(entry.opening_key),
            None if entry.opening == record.prompt else entry.opening,
            record.prompt,
            None if same else json.dumps(entry.raw),
            json.dumps(body),
            entry.language,
            entry.synthetic,
            DECLARED.index(record.split),
        )
        self._database.execute(_INSERT, values)

    def join(self, row: int, record: Record) -> None:
        """Note that a record which is not kept says the same as that of a row: it takes the more protected split."""
        split = DECLARED.index(record.split)
        self._database.execute("UPDATE kept SET split = max(split, ?), support = support + 1 WHERE row = ?", (split, row))
        self._database.execute("INSERT INTO links SELECT conversation, ? FROM kept WHERE row = ?", (hash64(record.group), row))

    def remove(self, row: int) -> None:
        """Take a record off the shelf."""
        self._database.execute("DELETE FROM kept WHERE row = ?", (row,))

    def asked_alike(self) -> Iterator[list[Shelved]]:
        """The records of every conversation that was answered more than once, in order."""
        self._database.execute("CREATE INDEX IF NOT EXISTS by_asked ON kept(asked)")
        several = "SELECT asked FROM kept GROUP BY asked HAVING count(*) > 1 ORDER BY min(row)"
        self._database.execute(f"CREATE TEMP TABLE several AS {several}")
        for (asked,) in self._database.execute("SELECT asked FROM several ORDER BY rowid"):
            yield list(self._shelved("asked = ?", asked))
        self._database.execute("DROP TABLE several")

    def languages(self) -> dict[str, int]:
        """Records of each language, the most frequent first."""
        counts = "SELECT language, count(*) FROM kept GROUP BY language ORDER BY count(*) DESC, min(row)"
        return dict(self._database.execute(counts))

    def column(self, name: str) -> np.ndarray:
        """One number of every record, in order: row, kind, id, conversation, opening, split or synthetic. (records,) int64."""
        import numpy as np

        rows = self._database.execute(f"SELECT {name} FROM kept ORDER BY row")
        return np.fromiter((value for (value,) in rows), np.int64, len(self))

    def links(self) -> np.ndarray:
        """Pairs of conversations that share a record of which one copy is not here: (links, 2) int64."""
        import numpy as np

        flat = (value for pair in self._database.execute("SELECT one, other FROM links") for value in pair)
        return np.fromiter(flat, np.int64).reshape(-1, 2)

    def prompts(self, rows: np.ndarray) -> Texts:
        """The prompts of some rows."""
        return Texts(self._database, "prompt", rows)

    def openings(self, rows: np.ndarray) -> Texts:
        """What the user opened the conversations of some rows with."""
        return Texts(self._database, "coalesce(opening_text, prompt)", rows)

    def records(self) -> Iterator[Record]:
        """Every record, in order; `split` is the one declared."""
        for shelved in self._shelved("1"):
            yield shelved.record

    def _shelved(self, condition: str, *values: object) -> Iterator[Shelved]:
        query = f"SELECT row, prompt, raw, body, split, support FROM kept WHERE {condition} ORDER BY row"
        for row, prompt, raw, body, split, support in self._database.execute(query, values):
            id, response, turns, source, group, meta = json.loads(body)
            history = tuple(Message(role, content) for role, content in turns)
            record = Record(id, prompt, response, history, DECLARED[split], source, group, meta)
            yield Shelved(row, record, tuple(json.loads(raw)) if raw else (record.prompt, response), support)


class Texts(Sequence[str]):
    """One text of each of some rows, read when it is asked for."""

    def __init__(self, database: sqlite3.Connection, what: str, rows: np.ndarray) -> None:
        self._database, self._rows = database, rows
        self._query = f"SELECT {what} FROM kept WHERE row = ?"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: int) -> str:  # type: ignore[override] - no slices
        return self._database.execute(self._query, (int(self._rows[at]),)).fetchone()[0]


def hash64(text: str) -> int:
    """64 bits of a text, as a signed number."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def with_split(record: Record, split: str, group: str) -> Record:
    """The record as the split stage leaves it."""
    return replace(record, split=split, group=group)
