"""Hugging Face datasets: by id (`hf:owner/name`), by folder, or as `save_to_disk` left them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moe_router.config import DataConfig
from moe_router.data.fields import DECLARED
from moe_router.data.readers.source import Source
from moe_router.data.readers.tables import items
from moe_router.data.turns import Item, fold
from moe_router.errors import InputError
from moe_router.workspace import digest_file, digest_json

PREFIX = "hf:"
"""`hf:owner/name`, `hf:owner/name:configuration` or `hf:folder`; an id is downloaded, once, and nothing else ever is."""
SAVED = ("dataset_dict.json", "state.json")
"""Either lies in a folder that `Dataset.save_to_disk` wrote."""


def is_dataset(path: Path) -> bool:
    """Whether what the user gave is to be opened by `datasets`."""
    return path.as_posix().startswith(PREFIX) or any((path / name).is_file() for name in SAVED)


def datasets_of(path: Path, settings: DataConfig) -> list[Source]:
    """A source for each split. Raises InputError, in one line, where `datasets` cannot open it."""
    opened = _open(path)
    digest = functools.partial(_digest, path, opened)
    name = path.as_posix()
    return [
        Source(path, f"{name}/{split}", _reader(rows), settings, digest, split=DECLARED.get(fold(split), ""))
        for split, rows in opened.items()
    ]


def _open(path: Path) -> dict[str, Any]:
    import datasets

    name = path.as_posix()
    try:
        if not name.startswith(PREFIX):
            found = datasets.load_from_disk(name)
        else:
            name, _, configuration = name.removeprefix(PREFIX).partition(":")
            if not name:
                raise InputError(f"{path.as_posix()} names no dataset: give hf:owner/name or hf:folder")
            found = datasets.load_dataset(name, configuration or None, streaming=Path(name).is_dir())
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path.as_posix()} cannot be opened as a dataset ({reason}): check the id and the connection"
        ) from error
    return dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}


def _reader(rows: Any) -> Callable[[Source], Iterator[Item]]:
    def read(source: Source) -> Iterator[Item]:
        numbered = ((number, "", dict(row)) for number, row in enumerate(rows, 1))
        yield from items(source, numbered, rows.column_names or ())

    return read


def _digest(path: Path, opened: dict[str, Any]) -> str:
    """Of a folder's files; of an id, what `datasets` says identifies its content."""
    folder = Path(path.as_posix().removeprefix(PREFIX))
    if folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return digest_json([[file.relative_to(folder).as_posix(), digest_file(file)] for file in files])
    return digest_json([[split, str(rows._fingerprint)] for split, rows in sorted(opened.items())])
