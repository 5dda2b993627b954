"""One source: a file, a member of an archive or a split of a dataset, read anew by each iteration and never held whole."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from moe_router.config import DataConfig
from moe_router.data.fields import Fields
from moe_router.data.turns import Item
from moe_router.errors import InputError

MAX_LINE = 1 << 24
"""Longest line in characters, and longest element of a JSON array; what goes beyond is rejected."""
FOREIGN = {0xDC80 + byte: bytes([0x80 + byte]).decode("cp1252", "replace") for byte in range(128)}
"""str.translate table from what `surrogateescape` makes of a byte to the Windows-1252 character it stands for."""
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, RuntimeError, NotImplementedError)
"""What gzip and zipfile raise for damaged, encrypted and unknown content."""


@dataclass
class Source:
    """Where items come from; `fields`, `said` and `count` are known while and after it is iterated."""

    path: Path
    """The file on disk, or what was given for a dataset."""
    name: str
    """What items and messages call it: the path, of an archive's member `export.zip/chat.txt`."""
    read: Callable[[Source], Iterator[Item]] = field(repr=False)
    settings: DataConfig
    digest: Callable[[], str] = field(repr=False)
    """Identifies the content."""
    member: str = ""
    """Name inside the zip archive at `path`; empty for the file itself."""
    split: str = ""
    """The split that the source's items belong to where they do not say another."""
    fields: Fields | None = None
    """Where prompt and response were found; None for a source without columns."""
    said: list[str] = field(default_factory=list)
    """What the user should know."""
    count: int = 0
    """Items of the last whole iteration."""

    def __iter__(self) -> Iterator[Item]:
        """The items, in order. Raises InputError where the source as a whole cannot be used or holds none."""
        count = 0
        self.said = []
        try:
            for item in self.read(self):
                count += 1
                yield item
        except _DAMAGE as error:
            raise InputError(f"{self.name} is damaged or protected ({error}): export it again") from error
        except OSError as error:
            raise InputError(f"{self.name} cannot be read ({error.strerror or error}): check its permissions") from error
        if not count:
            raise InputError(f"{self.name} holds no records: export it again or leave it out")
        self.count = count

    @property
    def items(self) -> tuple[Item, ...]:
        """All items at once, for sources that are known to be small."""
        return tuple(self)

    @property
    def note(self) -> str:
        """How the fields were guessed and what else was noticed; empty when there is nothing to say."""
        notes = [*([self.fields.note] if self.fields and self.fields.note else []), *self.said]
        return f"{self.name}: {'; '.join(notes)}" if notes else ""

    @property
    def suffix(self) -> str:
        """What kind of file it is, compression aside."""
        return suffix(Path(self.member) if self.member else self.path)

    @contextlib.contextmanager
    def binary(self) -> Iterator[IO[bytes]]:
        """The bytes, uncompressed, from start to end."""
        with contextlib.ExitStack() as stack:
            if self.member:
                stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(self.path)).open(self.member))
            else:
                stream = stack.enter_context(self.path.open("rb"))
            if Path(self.member or self.path).suffix.lower() == ".gz":
                stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
            yield stream

    @contextlib.contextmanager
    def seekable(self) -> Iterator[IO[bytes]]:
        """The bytes at any position: unpacked into a temporary file where they are compressed."""
        with self.binary() as stream:
            if isinstance(stream, io.BufferedReader):
                yield stream
                return
            with tempfile.TemporaryFile() as unpacked:
                shutil.copyfileobj(stream, unpacked)
                unpacked.seek(0)
                yield unpacked

    @contextlib.contextmanager
    def text(self) -> Iterator[Text]:
        """The text: UTF-8, or UTF-16 with a byte order mark; bytes that are not UTF-8 are read as Windows-1252, and said."""
        with self.binary() as stream:
            buffered = io.BufferedReader(stream) if not hasattr(stream, "peek") else stream
            mark = buffered.peek(2)[:2]
            wide = mark in (b"\xff\xfe", b"\xfe\xff")
            text = io.TextIOWrapper(buffered, "utf-16" if wide else "utf-8-sig", errors="strict" if wide else "surrogateescape")
            made = Text(text, self.name)
            try:
                yield made
            except UnicodeDecodeError as error:
                raise InputError(f"{self.name} is not UTF-16 text (after line {made.lines}): convert it to UTF-8") from error
            finally:
                text.detach()
            if made.foreign:
                self.say(f"{made.foreign:,} characters are not UTF-8 (first in line {made.first}), read as Windows-1252")

    def say(self, note: str) -> None:
        """Tell the user something about this source, once; nothing where `note` is empty."""
        if note and note not in self.said:
            self.said.append(note)


class Text:
    """Text read piece by piece: line ends as `\\n`, bytes of Windows-1252 as the characters they stand for."""

    def __init__(self, stream: io.TextIOWrapper, name: str) -> None:
        self.stream, self.name = stream, name
        self.lines = 0
        """Line ends read so far."""
        self.foreign = self.first = 0
        """Characters that were not UTF-8, and the line of the first."""

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Number and text of each line, without its end; of a line over MAX_LINE only the start, and one character more."""
        while True:
            number = self.lines + 1
            line = self._clean(self.stream.readline(MAX_LINE))
            if not line:
                return
            if not line.endswith("\n"):
                while rest := self._clean(self.stream.readline(MAX_LINE)):
                    line += rest[:1]
                    if rest.endswith("\n"):
                        break
            yield number, line.removesuffix("\n") if len(line) <= MAX_LINE else line

    def read(self, size: int) -> str:
        """Up to `size` characters, none at the end."""
        return self._clean(self.stream.read(size))

    def _clean(self, text: str) -> str:
        if "\0" in text:
            line = self.lines + 1 + text.count("\n", 0, text.index("\0"))
            raise InputError(f"{self.name} is not text (a zero byte in line {line}): convert it to UTF-8")
        if not text.isascii() and (clean := text.translate(FOREIGN)) != text:
            changed = [at for at, (old, new) in enumerate(zip(text, clean, strict=True)) if old != new]
            self.first = self.first or self.lines + 1 + text.count("\n", 0, changed[0])
            self.foreign += len(changed)
            text = clean
        self.lines += text.count("\n")
        return text


def suffix(path: Path) -> str:
    """Suffix in lower case, of a gzip file that of what is in it."""
    return unpacked(path).suffix.lower()


def unpacked(path: Path) -> Path:
    """The path without `.gz`."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path
