"""slices.toml: which cells make up each slice and what it is called, for people to read and to edit."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moe_router.data.naming import TAKEN
from moe_router.errors import InputError, WorkspaceError
from moe_router.workspace import write_text

HEAD = """\
# The slices of this workspace, one expert each. Rename a slice here, or merge two by putting all their cells into one and
# deleting the other; then run `moe-router slice`. `moe-router slices merge`, `split` and `rename` do it for you.
# Experts, gate and report are made anew for other slices.
"""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHOWN = 100


@dataclass(frozen=True)
class Grouping:
    """The slices, each with its name and the cells that it is made of."""

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]

    @classmethod
    def load(cls, path: Path, cells: int) -> Grouping:
        """What slices.toml says of so many cells. Raises WorkspaceError naming file, slice and remedy."""
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
            slices = tables["slice"]
            found = cls(tuple(one["name"] for one in slices), tuple(tuple(sorted(one["cells"])) for one in slices))
            found.check(cells)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, InputError) as error:
            raise WorkspaceError(f"{path}: {error}; correct it, or delete it and run `moe-router slice`") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise WorkspaceError(
                f"{path}: every [[slice]] has a name and a list of cells; correct it, or delete it and run `moe-router slice`"
            ) from error
        return found

    def check(self, cells: int) -> None:
        """Raises InputError unless every cell is in one slice and every name can be a folder's."""
        for name in self.names:
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name in TAKEN:
                raise InputError(f"slice name {name!r}: use a-z, 0-9, - and _, and none of {', '.join(TAKEN)}")
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise InputError(f"two slices are called {twice[0]!r}: rename one")
        counts = Counter(cell for own in self.members for cell in own)
        wrong = sorted(cell for cell in {*range(cells), *counts} if counts[cell] != 1 or cell not in range(cells))
        if wrong or not all(self.members):
            what = f"cell {wrong[0]} is in {counts[wrong[0]]} slices" if wrong else "a slice has no cells"
            raise InputError(f"{what}: each of the cells 0 to {cells - 1} belongs to one slice")

    def index(self, name: str) -> int:
        """The place of a slice. Raises InputError for a name that none has."""
        if name not in self.names:
            raise InputError(f"no slice is called {name!r}: the slices are {', '.join(self.names)}")
        return self.names.index(name)

    def merged(self, names: Sequence[str], name: str = "") -> Grouping:
        """With the slices `names` as one, in the place of the first, called like it or `name`."""
        first, *rest = [self.index(one) for one in dict.fromkeys(names)]
        if not rest:
            raise InputError("a merge takes two slices at least: name another one")
        members = list(self.members)
        members[first] = tuple(sorted(cell for at in (first, *rest) for cell in members[at]))
        kept = [at for at in range(len(members)) if at not in rest]
        merged = Grouping(tuple(self.names[at] for at in kept), tuple(members[at] for at in kept))
        return merged.renamed(self.names[first], name) if name else merged

    def renamed(self, old: str, new: str) -> Grouping:
        """With one name changed."""
        at = self.index(old)
        return replace(self, names=(*self.names[:at], new, *self.names[at + 1 :]))


def write_grouping(path: Path, grouping: Grouping, sizes: Sequence[int], words: Sequence, prompts: Sequence) -> None:
    """Write slices.toml; sizes, words and typical prompts of the slices stand there as comments."""
    blocks = [HEAD]
    for name, cells, size, own, asked in zip(grouping.names, grouping.members, sizes, words, prompts, strict=True):
        lines = ["[[slice]]", f"name = {json.dumps(name)}", f"cells = {list(cells)}"]
        lines.append(f"# {size:,} training records: {', '.join(own)}")
        lines += [f"#   {' '.join(prompt.split())[:_SHOWN]}" for prompt in asked]
        blocks.append("\n".join(lines) + "\n")
    write_text(path, "\n".join(blocks))
