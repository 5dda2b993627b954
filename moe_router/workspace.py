"""Where every file of a workspace lies, and how files are written so that none is ever half there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_router.errors import WorkspaceError

HOME_VARIABLE = "MOE_ROUTER_HOME"


@dataclass(frozen=True)
class Workspace:
    """A folder with the rooms `data/`, `experts/` and `reports/` in it."""

    root: Path

    @classmethod
    def find(cls, given: str | Path | None = None) -> Workspace:
        """The folder given, else the one that MOE_ROUTER_HOME names, else the current directory."""
        chosen = given if given is not None else os.environ.get(HOME_VARIABLE) or Path.cwd()
        root = Path(chosen).expanduser().resolve()
        if root.exists() and not root.is_dir():
            raise WorkspaceError(f"{root} is a file, not a folder: give --workspace a folder")
        return cls(root)

    @property
    def config(self) -> Path:
        return self.root / "moe-router.toml"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def sample(self) -> Path:
        """The sample company's raw exports."""
        return self.data / "sample"

    @property
    def records(self) -> Path:
        return self.data / "records.parquet"

    @property
    def rejected(self) -> Path:
        return self.data / "rejected.jsonl"

    @property
    def prepared(self) -> Path:
        """Counts and digests of the prepare stage."""
        return self.data / "prepared.json"

    @property
    def embeddings(self) -> Path:
        return self.data / "embeddings.safetensors"

    @property
    def slices(self) -> Path:
        """Names, sizes and words of the slices."""
        return self.data / "slices.json"

    @property
    def grouping(self) -> Path:
        """The slices' names and what they are made of, for the user to edit."""
        return self.data / "slices.toml"

    @property
    def assignments(self) -> Path:
        """The slice of each record, and the slices' centroids."""
        return self.data / "slices.safetensors"

    @property
    def experts(self) -> Path:
        """The library: experts and gate of one base."""
        return self.root / "experts"

    @property
    def recipes(self) -> Path:
        return self.experts / "recipes"

    @property
    def checkpoints(self) -> Path:
        return self.root / ".moe-router" / "checkpoints"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def data_report(self) -> Path:
        """What the prepare stage did, as a page; its Markdown form lies beside it."""
        return self.reports / "data.html"

    @property
    def slice_map(self) -> Path:
        """The slices as a picture, which the data report shows."""
        return self.reports / "data-slices.svg"

    @property
    def arms(self) -> Path:
        """The dense rivals that a report trains."""
        return self.reports / "arms"

    def require(self, path: Path, command: str) -> Path:
        """`path`, or an error that names the command which makes it."""
        if not path.exists():
            raise WorkspaceError(f"{path} is not there yet: run `moe-router {command}` first")
        return path


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; on success it is synced to disk and renamed over `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes 0600; the user's umask should decide
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, accents left readable."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """JSON of a workspace file; damage is reported by name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WorkspaceError(f"{path} is missing: run the stage that makes it again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WorkspaceError(f"{path} is damaged ({error}): delete it and run its stage again") from error


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """sha256 of a JSON value in canonical form, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
