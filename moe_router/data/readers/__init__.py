"""Raw exports to items, each with file and line: logs, tables, handbooks, archives, datasets, and folders of them."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from moe_router.config import DataConfig
from moe_router.data.readers import hub, logs, pages, tables
from moe_router.data.readers.source import Source, suffix
from moe_router.data.turns import Item
from moe_router.errors import InputError
from moe_router.workspace import digest_file

__all__ = ["READERS", "Source", "expand", "read_file"]

READERS: dict[str, Callable[[Source], Iterator[Item]]] = {
    ".txt": logs.read_log,
    ".log": logs.read_log,
    ".jsonl": tables.read_jsonl,
    ".ndjson": tables.read_jsonl,
    ".json": tables.read_json,
    ".csv": tables.read_csv,
    ".tsv": tables.read_csv,
    ".parquet": tables.read_parquet,
    ".md": pages.read_markdown,
    ".markdown": pages.read_markdown,
    ".html": pages.read_html,
    ".htm": pages.read_html,
}
"""Reader of each kind of file, by suffix."""
ARCHIVE = ".zip"


def expand(
    sources: Sequence[Path], settings: DataConfig, skip: Collection[Path] = (), name: Callable[[Path], str] = Path.as_posix
) -> list[Source]:
    """What to read: files given, archives' members, datasets' splits, and of folders all that can be read, but for `skip`.

    `name` says what a path is called. READMEs, hidden files and files of other kinds are passed over in folders and
    archives; given by name they are errors. Raises InputError for a missing or empty source and for an unknown kind.
    """
    found: list[Source] = []
    for given in sources:
        if hub.is_dataset(given):
            found += hub.datasets_of(given, settings)
        elif given.is_dir():
            files = [path for path in sorted(given.rglob("*")) if path.is_file() and _wanted(path.relative_to(given))]
            inside = [one for path in files if path.resolve() not in skip for one in _files(path, settings, name(path))]
            if not inside:
                raise InputError(f"{given} holds no file that can be read: export {_kinds()} into it")
            found += inside
        elif not given.exists():
            raise InputError(f"{given} does not exist: check the path; a Hugging Face dataset is hf:owner/name")
        elif not _readable(given):
            raise InputError(f"{given}: files of kind {suffix(given) or 'none'!r} are not read; give {_kinds()}")
        else:
            found += _files(given, settings, name(given))
    if not found:
        raise InputError("no source given: name a file, a folder or a dataset to read")
    return found


def read_file(path: Path, settings: DataConfig, name: str = "") -> Source:
    """The source of one file, which must be usable; `name` is what they call it. Raises InputError otherwise."""
    (source,) = _files(path, settings, name or path.as_posix())
    next(iter(source), None)
    return source


def _files(path: Path, settings: DataConfig, name: str) -> list[Source]:
    digest = functools.cache(functools.partial(digest_file, path))
    if suffix(path) != ARCHIVE:
        return [Source(path, name, READERS[suffix(path)], settings, digest)]
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path} is not a readable zip archive ({error}): export it again") from error
    wanted = [one for one in members if _wanted(Path(one)) and suffix(Path(one)) != ARCHIVE]
    if not wanted:
        raise InputError(f"{path} holds no file that can be read: pack {_kinds()} into it")
    return [Source(path, f"{name}/{one}", READERS[suffix(Path(one))], settings, digest, member=one) for one in wanted]


def _wanted(path: Path) -> bool:
    """Whether a file inside a folder or archive is a source."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return _readable(path) and not hidden and not path.stem.lower().startswith("readme")


def _readable(path: Path) -> bool:
    return suffix(path) in READERS or path.suffix.lower() == ARCHIVE


def _kinds() -> str:
    return ", ".join([*READERS, ARCHIVE])
