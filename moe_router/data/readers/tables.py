"""Tables: JSON Lines, JSON arrays, delimited text and Parquet, each row with its line."""

from __future__ import annotations

import csv
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from moe_router.data.fields import choose_fields, row_items
from moe_router.data.markers import marked
from moe_router.data.readers.source import MAX_LINE, Source
from moe_router.data.turns import Item
from moe_router.errors import InputError

SAMPLE = 1000
"""Rows from which the columns are learned."""
BATCH = 512
"""Rows of a Parquet table that are held at once."""
CHUNK = 1 << 18
"""Characters of a JSON array read at once."""
_KINDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
"""What stands where an object belongs, by the type it is read as; a number else."""
Row = tuple[int, str, dict[str, Any] | str]
"""Line, text, and the row or what is wrong with it."""


def read_jsonl(source: Source) -> Iterator[Item]:
    """A JSON object a line."""
    with source.text() as text:
        yield from items(source, ((number, line, _parse(line)) for number, line in text if line.strip()))


def read_json(source: Source) -> Iterator[Item]:
    """An array of objects, objects one after the other, or an object that holds an array of them."""
    with source.text() as text:
        try:
            yield from items(source, _unwrapped((line, raw, _checked(value, raw)) for line, raw, value in values(text.read)))
        except (NotJsonError, RecursionError) as error:
            raise InputError(
                f"{source.name} is not a JSON array of objects ({error}): export it as one, or as .jsonl"
            ) from error


def read_csv(source: Source) -> Iterator[Item]:
    """Delimited text with a header; the delimiter is the one that cuts the header into most columns."""
    with source.text() as text:
        lines = iter(text)
        first = next(lines, (1, ""))
        marks = "\t" if source.suffix == ".tsv" else ",;\t|"
        delimiter = max(marks, key=lambda mark: len(next(csv.reader([first[1]], delimiter=mark), [])))
        yield from items(source, csv_rows(itertools.chain([first], lines), delimiter))


def read_parquet(source: Source) -> Iterator[Item]:
    """A Parquet table; the line of a row is its number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with source.seekable() as stream, pq.ParquetFile(stream, pre_buffer=False) as table:
            groups = range(table.num_row_groups)  # one at a time: else the reader keeps every group it has been through
            batches = (batch for group in groups for batch in table.iter_batches(BATCH, row_groups=[group]))
            rows = enumerate((row for batch in batches for row in batch.to_pylist()), 1)
            yield from items(source, ((number, "", row) for number, row in rows), table.schema_arrow.names)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if getattr(error, "errno", None):  # the system's own; Arrow's for a damaged file has no number
            raise
        raise InputError(f"{source.name} is not a readable Parquet file: export it again") from error


def items(source: Source, rows: Iterable[Row], columns: Sequence[str] = ()) -> Iterator[Item]:
    """Items of the rows; the fields are chosen by `columns` and the first rows.

    Raises InputError when no field can be chosen and when none of the first rows can be read.
    """
    rows = iter(rows)
    sample = list(itertools.islice(rows, SAMPLE))
    good = [row for _, _, row in sample if isinstance(row, dict)]
    if sample and not good:
        line, _, reason = sample[0]
        raise InputError(f"{source.name}: nothing in it can be read (line {line}: {reason}): export it again")
    if not sample and not columns:
        return
    columns = [*dict.fromkeys([*columns, *(key for row in good for key in row)])]
    texts = [column for column in columns if any(isinstance(row.get(column), str) and marked(row[column]) for row in good)]
    source.fields = fields = choose_fields(columns, source.settings, source.name, texts)
    for number, (line, text, row) in enumerate(itertools.chain(sample, rows), 1):
        if isinstance(row, str):
            yield Item(source.name, line, text).reject("over_long" if len(text) > MAX_LINE else "malformed", row)
        else:
            yield from row_items(row, fields, source.name, line, number, source.split)


def values(read: Callable[[int], str]) -> Iterator[tuple[int, str, Any]]:
    """Line, text and value of each element of a JSON array, or of each of several JSON values in a row.

    Holds one element at a time: the standard decoder tells where in a text a value ends, which the streaming parsers do
    not. Raises NotJsonError where the text is neither.
    """
    buffer = _Buffer(read)
    array = buffer.next() == "["
    if array:
        buffer.at += 1
    while (mark := buffer.next()) != ("]" if array else ""):
        yield buffer.value()
        mark = buffer.next()
        if array and mark == ",":
            buffer.at += 1
        elif array and mark != "]":
            buffer.fail("a comma or `]` is missing")
        elif mark and not array and mark != "{":
            buffer.fail("it does not begin with `[`")
    if array:
        buffer.at += 1
        if buffer.next():
            buffer.fail("there is more behind the array")


class NotJsonError(ValueError):
    """Where and why a text is not JSON."""


class _Buffer:
    """The part of a JSON text that is being decoded."""

    def __init__(self, read: Callable[[int], str]) -> None:
        self.read, self.text, self.at, self.line, self.counted = read, "", 0, 1, 0
        self.decoder = json.JSONDecoder()

    def next(self) -> str:
        """The next character that is not space, which `at` is set to; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def value(self) -> tuple[int, str, Any]:
        """Line, text and value of what begins at `at`."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                whole = end < len(self.text) or not self._more()
            except ValueError as error:
                if len(self.text) - self.at > MAX_LINE:
                    self.fail(f"an element is longer than {MAX_LINE:,} characters")
                if not self._more():
                    self.fail(str(error))
                continue
            if whole:
                self.line += self.text.count("\n", self.counted, self.at)
                self.counted = self.at
                raw, self.at = self.text[self.at : end], end
                return self.line, raw, value

    def fail(self, reason: str) -> None:
        line = self.line + self.text.count("\n", self.counted, self.at)
        raise NotJsonError(f"line {line}: {reason}")

    def _more(self) -> bool:
        """Read on, twice as far while an element does not end; what is done with is let go."""
        chunk = self.read(max(CHUNK, len(self.text) - self.at))
        if chunk:
            self.line += self.text.count("\n", self.counted, self.at)
            self.text, self.at, self.counted = self.text[self.at :] + chunk, 0, 0
        return bool(chunk)


def _unwrapped(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows; of a single object whose one list of objects is what it is about, that list's."""
    rows = iter(rows)
    first, second = next(rows, None), next(rows, None)
    lists = [value for value in first[2].values() if _objects(value)] if first and isinstance(first[2], dict) else []
    if first and not second and len(lists) == 1 and not any("role" in row or "from" in row for row in lists[0]):
        yield from ((first[0], "", row) for row in lists[0])
    else:
        yield from itertools.chain(filter(None, (first, second)), rows)


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _parse(text: str) -> dict[str, Any] | str:
    """A JSON object, or what is wrong with it."""
    if len(text) > MAX_LINE:
        return f"longer than {MAX_LINE:,} characters"
    try:
        return _checked(json.loads(text), text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"


def _checked(row: Any, text: str) -> dict[str, Any] | str:
    try:
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is legal JSON and no text
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return row if isinstance(row, dict) else f"{_KINDS.get(type(row), 'a number')}, not an object"


def csv_rows(lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[Row]:
    """Rows of delimited text, under the names in the first one.

    Where a row of several lines does not fit the columns, or a quote is never closed, only its first line is rejected and
    the next is taken for the beginning of a row: a stray quote does not swallow what follows.
    """
    ahead: deque[tuple[int, str]] = deque()
    taken: list[tuple[int, str]] = []

    def feed() -> Iterator[str]:
        while entry := ahead.popleft() if ahead else next(lines, None):
            taken.append(entry)
            yield entry[1] + "\n"

    columns = [column.strip() for column in _cut(feed(), delimiter) or [taken[0][1]]]
    while True:
        taken.clear()
        row, reason = _cut(feed(), delimiter), "a quote is not closed"
        if not taken:
            return
        number, line = taken[0]
        if row is not None and len(row) == len(columns):
            yield number, "", dict(zip(columns, row, strict=True))
            continue
        if row is not None:
            reason = f"{len(row)} fields, the header has {len(columns)}"
        ahead.extendleft(reversed(taken[1:]))
        if line.strip():
            yield number, line, reason


def _cut(lines: Iterable[str], delimiter: str) -> list[str] | None:
    """The next row, or None for one that never ends or has a field over the csv module's limit."""
    open_end = False

    def watched() -> Iterator[str]:
        nonlocal open_end
        yield from lines
        open_end = True

    try:
        row = next(csv.reader(watched(), delimiter=delimiter), [])
    except csv.Error:
        return None
    return None if open_end else row
