"""Raw exports to items: chat logs, JSON Lines, JSON arrays, delimited tables and Parquet, each item with file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_router.config import DataConfig
from moe_router.data.fields import Fields, choose_fields, row_items
from moe_router.data.turns import Item, chat_log, pair_turns
from moe_router.errors import InputError

PARQUET_BATCH = 1024


@dataclass(frozen=True)
class Source:
    """One file, read."""

    name: str
    items: tuple[Item, ...]
    fields: Fields | None = None
    """Where prompt and response were found; None for a chat log."""

    @property
    def note(self) -> str:
        """How the fields were guessed; empty when nothing was."""
        return f"{self.name}: {self.fields.note}" if self.fields and self.fields.note else ""


def expand(sources: Sequence[Path], skip: Collection[Path] = ()) -> list[Path]:
    """The files to read: the files given, and of each folder given the readable ones by name, but for `skip`.

    READMEs, hidden files and files of other kinds are passed over in a folder; given by name they are errors.
    Raises InputError for a missing or empty source and for a file of an unknown kind.
    """
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = [path for path in sorted(source.iterdir()) if _wanted(path) and path.resolve() not in skip]
            if not inside:
                raise InputError(f"{source} holds no file that can be read: export {_kinds()} into it")
            files += inside
        elif not source.exists():
            raise InputError(f"{source} does not exist: check the path")
        elif source.suffix.lower() not in READERS:
            raise InputError(f"{source}: files of kind {source.suffix or 'none'!r} are not read; give {_kinds()}")
        else:
            files.append(source)
    if not files:
        raise InputError("no source given: name a file or folder to read")
    return files


def read_file(path: Path, settings: DataConfig, name: str = "") -> Source:
    """All items of one file; `name` is what they call it. Raises InputError when the file as a whole cannot be used."""
    try:
        source = READERS[path.suffix.lower()](path, settings, name or path.as_posix())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    if not source.items:
        raise InputError(f"{path} holds no records: export it again or leave it out")
    return source


def read_text(path: Path) -> str:
    """UTF-8 text (with or without a byte order mark) or UTF-16 with one, line ends as `\\n`.

    Raises InputError naming the first byte that does not fit.
    """
    data = path.read_bytes()
    encoding, mark = "utf-8", 0
    for found, bom in (("utf-8", b"\xef\xbb\xbf"), ("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")):
        if data.startswith(bom):
            encoding, mark = found, len(bom)
    try:
        text = data[mark:].decode(encoding)
        bad = data.find(b"\0") if encoding == "utf-8" else -1
    except UnicodeDecodeError as error:
        bad = mark + error.start
    if bad >= 0:
        raise InputError(f"{path} is not {encoding.upper()} text (byte {bad}): convert it to UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _wanted(path: Path) -> bool:
    hidden = path.name.startswith(".") or path.stem.lower().startswith("readme")
    return path.is_file() and path.suffix.lower() in READERS and not hidden


def _kinds() -> str:
    return ", ".join(READERS)


def _read_chat(path: Path, settings: DataConfig, name: str) -> Source:
    conversations = list(chat_log(read_text(path).split("\n")))
    if conversations and not any(turn.role for turns in conversations for turn in turns):
        raise InputError(f"{path} has no turns: begin each with `User:` or `Assistant:`")
    items: list[Item] = []
    for turns in conversations:
        items += pair_turns(turns, Item(name, turns[0].line, conversation=f"{name}:{turns[0].line}"))
    return Source(name, tuple(items))


def _read_jsonl(path: Path, settings: DataConfig, name: str) -> Source:
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    return _from_rows([(number, line, _parse(line)) for number, line in lines], settings, name)


def _read_json(path: Path, settings: DataConfig, name: str) -> Source:
    text = read_text(path)
    try:
        rows = list(_array(text))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON array of objects ({error}): export it as one, or as .jsonl") from error
    return _from_rows([(line, raw, _parse(raw)) for line, raw in rows], settings, name)


def _array(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each element of a JSON array. Raises ValueError where the text is not one."""
    decoder, line, seen = json.JSONDecoder(), 1, 0
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        raise ValueError("it does not begin with `[`")
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        line, seen = line + text.count("\n", seen, at), at
        _, end = decoder.raw_decode(text, at)
        yield line, text[at:end]
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("a comma or `]` is missing", text, at)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _parse(text: str) -> dict[str, Any] | str:
    """A JSON object, or what is wrong with it."""
    try:
        row = json.loads(text)
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is legal JSON and no text
    except UnicodeEncodeError:
        return "half a surrogate pair"
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object"


def _read_csv(path: Path, settings: DataConfig, name: str) -> Source:
    text = read_text(path)
    header = text.split("\n", 1)[0]
    delimiters = "\t" if path.suffix.lower() == ".tsv" else ",;\t|"
    delimiter = max(delimiters, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))
    return _from_rows(list(_csv_rows(text, delimiter)), settings, name)


def _csv_rows(text: str, delimiter: str) -> Iterator[tuple[int, str, dict[str, Any] | str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [column.strip() for column in next(reader, [])]
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, "", str(error)
            continue
        if len(values) == len(header):
            yield line, "", dict(zip(header, values, strict=True))
        elif values:
            yield line, delimiter.join(values), f"{len(values)} fields, the header has {len(header)}"


def _read_parquet(path: Path, settings: DataConfig, name: str) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            fields = choose_fields(table.schema_arrow.names, settings, name)
            batches = table.iter_batches(batch_size=PARQUET_BATCH)
            rows = enumerate((row for batch in batches for row in batch.to_pylist()), 1)
            return Source(name, tuple(item for number, row in rows for item in row_items(row, fields, name, number)), fields)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if getattr(error, "errno", None):  # the system's own; Arrow's for a damaged file has no number
            raise
        raise InputError(f"{path} is not a readable Parquet file: export it again") from error


def _from_rows(rows: Sequence[tuple[int, str, dict[str, Any] | str]], settings: DataConfig, name: str) -> Source:
    """Items of (line, text, row or what is wrong with it). Raises InputError when there are rows and all are wrong."""
    if not rows:
        return Source(name, ())
    if all(isinstance(row, str) for _, _, row in rows):
        raise InputError(f"{name}: nothing in it can be read (line {rows[0][0]}: {rows[0][2]}): export it again")
    columns = dict.fromkeys(key for _, _, row in rows if isinstance(row, dict) for key in row)
    fields = choose_fields(columns, settings, name)
    return Source(name, tuple(_items(rows, fields, name)), fields)


def _items(rows: Iterable[tuple[int, str, dict[str, Any] | str]], fields: Fields, name: str) -> Iterator[Item]:
    for line, text, row in rows:
        if isinstance(row, str):
            yield Item(name, line, text).reject("malformed", row)
        else:
            yield from row_items(row, fields, name, line)


READERS: dict[str, Callable[[Path, DataConfig, str], Source]] = {
    ".txt": _read_chat,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
"""Reader of each kind of file, by suffix."""
