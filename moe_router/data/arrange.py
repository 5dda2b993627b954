"""Which of the cleaned records are used, in which group and split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from moe_router.config import DataConfig
from moe_router.data.clean import Rejection
from moe_router.data.records import SPLITS, Record
from moe_router.data.shelf import DECLARED, Shelf, with_split
from moe_router.data.split import Groups, find_groups, sample, split

UNUSED, REFUSED = 0, -1
"""Codes of records beyond `data.limit`, and of synthetic ones that are rejected."""
TRAIN = DECLARED.index("train")


@dataclass(frozen=True)
class Plan:
    """Where every record on a shelf goes."""

    rows: np.ndarray  # (records,) int64
    groups: Groups
    codes: np.ndarray
    """Place of the split in DECLARED, UNUSED or REFUSED: (records,)."""
    synthetic: np.ndarray  # (records,) bool

    @property
    def count(self) -> int:
        """Records that are used."""
        return int((self.codes > 0).sum())

    @property
    def refused(self) -> int:
        """Synthetic records that are rejected."""
        return int((self.codes == REFUSED).sum())

    @property
    def splits(self) -> dict[str, int]:
        """Records of each split."""
        return {name: int((self.codes == DECLARED.index(name)).sum()) for name in SPLITS}

    @property
    def group_sizes(self) -> np.ndarray:
        """Used records of each group: (groups,) int64."""
        return np.bincount(self.groups.index[self.codes > 0], minlength=len(self.groups.ids))

    @property
    def synthetic_count(self) -> int:
        """Synthetic records that are used."""
        return int((self.synthetic & (self.codes > 0)).sum())

    def records(self, shelf: Shelf) -> Iterator[Record]:
        """The records that are used, in order, with their split and group."""
        for record, code, group in zip(shelf.records(), self.codes, self.groups.index, strict=True):
            if code > 0:
                yield with_split(record, DECLARED[code], self.groups.name(group))


def arrange(shelf: Shelf, settings: DataConfig, reject: Callable[[Rejection], None]) -> Plan:
    """Group, sample and split what is on a shelf; synthetic records train, up to their share, or are handed to `reject`.

    No held-out split holds a synthetic record: they would be judged by what a model made up.
    """
    rows, ids = shelf.column("row"), shelf.column("id").view(np.uint64)
    texts = lambda at: shelf.openings(rows[at])  # noqa: E731
    groups = find_groups(ids, shelf.column("conversation"), shelf.column("opening"), texts, shelf.links())
    synthetic = shelf.column("synthetic").astype(bool)
    used = sample(groups, settings.limit, settings.seed)
    real = used & ~synthetic
    codes = np.full(len(rows), UNUSED, np.int8)
    if real.any():
        codes[real] = split(groups.only(real), shelf.column("split")[real], settings)
    plan = Plan(rows, groups, codes, synthetic)
    _place_synthetic(plan, used & synthetic, ids, settings)
    for at in np.flatnonzero(codes == REFUSED):
        _refuse(shelf, int(rows[at]), reject)
    return plan


def _place_synthetic(plan: Plan, mine: np.ndarray, ids: np.ndarray, settings: DataConfig) -> None:
    """Enter the synthetic records: into train where their group is not held out, as many as their share allows."""
    of_group = np.full(len(plan.groups.ids), TRAIN, np.int8)
    real = plan.codes > 0
    of_group[plan.groups.index[real]] = plan.codes[real]
    plan.codes[mine] = REFUSED
    fitting = np.flatnonzero(mine & (of_group[plan.groups.index] == TRAIN))
    share = settings.synthetic_share
    most = int(share / (1 - share) * (plan.codes == TRAIN).sum())
    order = np.argsort(ids[fitting] * np.uint64((0x9E3779B97F4A7C15 + 2 * settings.seed) % (1 << 64)), kind="stable")
    plan.codes[fitting[order[:most]]] = TRAIN


def _refuse(shelf: Shelf, row: int, reject: Callable[[Rejection], None]) -> None:
    record = shelf.get(row).record
    file, _, line = record.source.rpartition(":")
    reason = "synthetic, and beyond data.synthetic_share or like a record that is held out"
    reject(Rejection(file, int(line), "synthetic", reason, f"{record.prompt}\n{record.response}"))
