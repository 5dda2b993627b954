"""The slices of a workspace, and their files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from moe_router.data.cells import Cells
from moe_router.data.choose import Tried
from moe_router.data.data_report import write_data_report
from moe_router.data.drift import Drift
from moe_router.data.grouping import Grouping, write_grouping
from moe_router.data.slice_map import draw, project
from moe_router.data.tensors import read_tensors, write_tensors
from moe_router.errors import WorkspaceError
from moe_router.workspace import Workspace, digest_file, digest_json, read_json, write_json, write_text

FORMAT = 2


@dataclass(frozen=True)
class Slices:
    """The slices of a workspace."""

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    """Cells of each slice."""
    sizes: tuple[int, ...]
    """Training records of each slice."""
    words: tuple[tuple[str, ...], ...]
    """Words that set each slice apart, best first."""
    prompts: tuple[tuple[str, ...], ...]
    """Three typical prompts of each slice."""
    centroids: np.ndarray  # (slices, dimension) float32, unit length
    labels: np.ndarray  # (records,) int64, in the order of records.parquet
    embeddings: np.ndarray  # (records, dimension) float32, unit length
    cells: Cells
    known: np.ndarray
    """Hashes of the ids of the training records that the cells were made of: (known,) uint64."""
    home: np.ndarray
    """The cell of each of them: (known,) int64."""
    embedder: str
    by: str
    """Field of the records whose values bound the cells; empty for none."""
    digest: str
    """Of the names and of what every record's slice is."""
    drift: Drift = field(default_factory=Drift)
    curve: tuple[Tried, ...] = ()
    """What each number of slices gained, where k was chosen."""
    embedder_digest: str = ""
    recipe: str = field(default="", repr=False)
    """Digest of embedder and settings; cells are kept while it stays the same."""
    inputs: str = field(default="", repr=False)
    """Digest of records, embedder and settings; equal inputs are not sliced again."""
    source: str = field(default="", repr=False)
    """Digest of records and embedder, which the embeddings depend on."""
    records_sha256: str = field(default="", repr=False)
    fresh: bool = False
    """Whether this call made them; False when they were up to date."""
    notes: tuple[str, ...] = ()
    """What the user should know of this call."""

    @property
    def grouping(self) -> Grouping:
        """Names and cells, as in slices.toml."""
        return Grouping(self.names, self.members)

    @property
    def ratio(self) -> float:
        """Training records of the largest slice to those of a mean one."""
        return max(self.sizes) * len(self.sizes) / sum(self.sizes)

    @classmethod
    def load(cls, workspace: Workspace) -> Slices:
        """The slices that `slice_records` wrote.

        Raises WorkspaceError when they are missing, damaged, of other records than the workspace holds now, or when
        slices.toml has been edited since.
        """
        found = stored_slices(workspace)
        if found.records_sha256 != digest_file(workspace.require(workspace.records, "prepare")):
            raise WorkspaceError(f"{workspace.slices} belongs to other records: run `moe-router slice` again")
        if edited(workspace, found) != found.grouping:
            raise WorkspaceError(f"{workspace.grouping} has been edited: run `moe-router slice` to apply it")
        return found


ORIGIN = ("recipe", "inputs", "source", "records_sha256")
_INDEX = (*ORIGIN, "names", "members", "sizes", "words", "prompts", "embedder", "by", "embedder_digest", "digest")
_LISTS = ("words", "prompts", "members")


def save_slices(workspace: Workspace, slices: Slices, seed: int = 0) -> None:
    """Write the stage's files; each says what it was made of, so that files of two runs are never read as one.

    The data report gets its part on the slices; `seed` is that of the report's examples.
    """
    cells = slices.cells
    tensors = {"centroids": slices.centroids, "labels": slices.labels, "known": slices.known, "home": slices.home}
    note = _note(slices.inputs, slices.digest)
    write_tensors(workspace.assignments, {**tensors, "centers": cells.centers, "reach": cells.reach}, note)
    index: dict[str, Any] = {name: getattr(slices, name) for name in _INDEX}
    index["cells"] = {"values": cells.values, "sizes": cells.sizes, "other": cells.other, "below": cells.below}
    index["largest_to_mean"] = slices.ratio
    index |= {"drift": asdict(slices.drift), "curve": [asdict(tried) for tried in slices.curve]}
    write_json(workspace.slices, {"format": FORMAT, **index})
    write_grouping(workspace.grouping, slices.grouping, slices.sizes, slices.words, slices.prompts)
    if workspace.prepared.exists():
        shown = project(slices.embeddings, slices.labels, slices.centroids)
        write_text(workspace.slice_map, draw(shown, slices.names, slices.sizes))
        write_data_report(workspace, seed)


def _note(inputs: str, digest: str) -> dict[str, str]:
    return {"slices": digest_json([inputs, digest])}  # one entry: several would be written in no fixed order


def stored_slices(workspace: Workspace) -> Slices:
    index = read_json(workspace.require(workspace.slices, "slice"))
    try:
        if index.pop("format") != FORMAT:
            raise KeyError("format")
        assigned = read_tensors(workspace.assignments, _note(index["inputs"], index["digest"]))
        embedded = read_tensors(workspace.embeddings, {"source": index["source"]}, ("embeddings",))
        cells = index.pop("cells")
        cells |= {name: tuple(cells[name]) for name in ("values", "sizes")}
        index["cells"] = Cells(centers=assigned.pop("centers"), reach=assigned.pop("reach"), **cells)
        index |= {name: tuple(map(tuple, index[name])) for name in _LISTS}
        index |= {name: tuple(index[name]) for name in ("names", "sizes")}
        del index["largest_to_mean"]
        index |= {"drift": Drift.load(index["drift"]), "curve": tuple(Tried(**tried) for tried in index["curve"])}
        return Slices(**index, **assigned, **embedded)
    except (KeyError, TypeError, AttributeError) as error:
        raise WorkspaceError(f"{workspace.slices} is damaged: run `moe-router slice` again") from error


def edited(workspace: Workspace, slices: Slices) -> Grouping:
    """What slices.toml says; the slices' own grouping where the file is not there."""
    return Grouping.load(workspace.grouping, len(slices.cells)) if workspace.grouping.exists() else slices.grouping
