"""Merging, splitting and renaming a workspace's slices; the cells that are not touched stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from moe_router.config import Config, SliceConfig
from moe_router.data.cells import Cells, describe_cells, find_clusters
from moe_router.data.grouping import Grouping
from moe_router.data.naming import distinguishing_words, slice_names
from moe_router.data.records import Record, load_records
from moe_router.data.sliced import Slices, save_slices
from moe_router.data.slices import check_sizes, hashes, place, regrouped
from moe_router.data.tensors import read_tensors
from moe_router.errors import InputError
from moe_router.workspace import Workspace

MOST_PARTS = 16


def merge_slices(workspace: Workspace, config: Config, names: Sequence[str], name: str = "") -> Slices:
    """Make one slice of several, called like the first or `name`. Raises InputError for names that no slice has."""
    return _regroup(workspace, config, lambda grouping: grouping.merged(names, name))


def rename_slice(workspace: Workspace, config: Config, old: str, new: str) -> Slices:
    """Call a slice otherwise. Raises InputError for a name that no slice has, that is taken, or that no folder can have."""
    return _regroup(workspace, config, lambda grouping: grouping.renamed(old, new))


def split_slice(workspace: Workspace, config: Config, name: str, into: int = 2) -> Slices:
    """Cluster one slice's records into `into` slices, named by their words; other records stay where they are.

    Raises InputError when a part would have fewer training records than `slice.min_records`.
    """
    if not 2 <= into <= MOST_PARTS:
        raise InputError(f"--into {into}: a slice is split into 2 to {MOST_PARTS}")
    slices, records = Slices.load(workspace), load_records(workspace.records)
    responses = read_tensors(workspace.embeddings, {"source": slices.source}, ("responses",))["responses"]
    made = _split(slices, records, responses, slices.grouping.index(name), replace(config.slice, k=into))
    check_sizes(made.names, made.sizes, config.slice, lower="--into")
    save_slices(workspace, made, config.data.seed)
    return made


def _regroup(workspace: Workspace, config: Config, change: Callable[[Grouping], Grouping]) -> Slices:
    slices = Slices.load(workspace)
    made = regrouped(slices, change(slices.grouping), load_records(workspace.records), slices.embeddings)
    save_slices(workspace, made, config.data.seed)
    return made


def _split(slices: Slices, records: Sequence[Record], responses: np.ndarray, at: int, settings: SliceConfig) -> Slices:
    """The slices with the one at `at` cut into `settings.k`. *Shape:* responses (training records, dimension)."""
    train = np.flatnonzero([record.split == "train" for record in records])
    mine = slices.labels[train] == at
    cut = train[mine]
    if len(cut) < settings.k * settings.min_records:
        raise InputError(
            f"slice {slices.names[at]!r} has {len(cut)} training records, too few for {settings.k} slices of "
            f"{settings.min_records}: lower --into or slice.min_records"
        )
    own = slices.embeddings[cut]
    parts = find_clusters(own, responses[mine], [records[i].response for i in cut], settings)
    gone = list(slices.members[at])
    number = np.cumsum(~np.isin(np.arange(len(slices.cells)), gone)) - 1  # of each cell that stays, afterwards
    first = len(slices.cells) - len(gone)
    assigned, later = place(slices, records, slices.embeddings)
    assigned = number[assigned]
    assigned[cut] = first + parts
    known = np.flatnonzero(~later & np.isin(np.arange(len(records)), train))
    cells = _replaced(slices.cells, gone, describe_cells(own, parts, (_value(slices, gone),) * settings.k))
    sizes = tuple(np.bincount(assigned[known], minlength=len(cells)).tolist())
    kept = [place for place in range(len(slices.names)) if place != at]
    named = [slices.names[place] for place in kept]
    words = distinguishing_words([records[i].prompt for i in train], assigned[train], len(cells))[first:]
    grouping = Grouping(
        (*named, *slice_names(words, taken=named)),
        (*(tuple(number[list(slices.members[place])].tolist()) for place in kept), *((first + n,) for n in range(settings.k))),
    )
    made = replace(slices, cells=replace(cells, sizes=sizes), known=hashes([records[i] for i in known]), home=assigned[known])
    return regrouped(made, grouping, records, slices.embeddings)


def _value(slices: Slices, cells: Sequence[int]) -> str:
    """What the cells are all bound to, or nothing."""
    values = {slices.cells.values[cell] for cell in cells}
    return values.pop() if len(values) == 1 else ""


def _replaced(cells: Cells, gone: Sequence[int], new: Cells) -> Cells:
    """The cells without some, and with new ones behind them."""
    stay = [cell for cell in range(len(cells)) if cell not in gone]
    return Cells(
        centers=np.concatenate([cells.centers[stay], new.centers]),
        reach=np.concatenate([cells.reach[stay], new.reach]),
        values=(*(cells.values[cell] for cell in stay), *new.values),
        sizes=(*(cells.sizes[cell] for cell in stay), *new.sizes),
        other=stay.index(cells.other) if cells.other in stay else -1,
        below=cells.below if cells.other in stay else -1.0,
    )
