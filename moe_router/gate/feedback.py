"""A review file of misroutes: which expert should have answered, or that none should."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_router.errors import InputError
from moe_router.gate.features import NOBODY
from moe_router.workspace import digest_file


@dataclass(frozen=True)
class Feedback:
    """Reviewed queries."""

    texts: Sequence[str]
    owners: np.ndarray  # (queries,) int64, the right expert or NOBODY
    digest: str

    @classmethod
    def read(cls, file: Path, names: Sequence[str]) -> Feedback:
        """JSON lines, each with a `text` and an `expert`: the right one's name, or null where the gate should abstain.

        A line without `expert` is a route that nobody reviewed and is left out. Raises InputError naming the line.
        """
        texts, owners = [], []
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read as UTF-8 JSON lines: {error}") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                found = _line(line, f"{file}:{number}", names)
                if found is not None:
                    texts.append(found[0])
                    owners.append(found[1])
        if not texts:
            raise InputError(
                f'{file} holds no feedback: give lines such as {{"text": "Where is my parcel?", "expert": "{names[0]}"}}'
            )
        return cls(texts, np.array(owners, dtype=np.int64), digest_file(file))


def _line(line: str, where: str, names: Sequence[str]) -> tuple[str, int] | None:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise InputError(f"{where} has no `text`: each line is an object with `text` and `expert`")
    if "expert" not in found:
        return None
    expert = found["expert"]
    if expert is None:
        return found["text"], NOBODY
    if expert not in names:
        raise InputError(f"{where}: no expert {expert!r}; use one of {', '.join(names)}, or null for none of them")
    return found["text"], names.index(expert)
