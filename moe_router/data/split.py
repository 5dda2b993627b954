"""Division of records into train, gate, tune and test, so that neither similar prompts nor conversations cross."""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moe_router.config import DataConfig
from moe_router.data.cleaning.near import near_labels
from moe_router.data.records import Record, first_turn
from moe_router.data.shelf import DECLARED, hash64

HELD = ("test", "tune", "gate")
"""The splits that no expert trains on, in the order in which they are filled."""


class _Bare(dict[int, int | None]):
    """str.translate table without punctuation, spaces and control characters, filled as characters turn up."""

    def __missing__(self, code: int) -> int | None:
        self[code] = None if unicodedata.category(chr(code))[0] in "PZC" else code
        return self[code]


_BARE = _Bare()


def prompt_key(record: Record) -> str:
    """The conversation's first user turn, for comparing: compatible forms, case, spaces and punctuation aside."""
    first = first_turn(record)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", first).casefold())
    return folded.translate(_BARE) or folded


@dataclass(frozen=True)
class Groups:
    """Which records belong together; a group is called like the smallest id in it."""

    index: np.ndarray
    """The group of each record: (records,) int64."""
    ids: np.ndarray
    """Of each group, in order: (groups,) uint64, or of strings."""

    @classmethod
    def of(cls, names: np.ndarray) -> Groups:
        """From the name of each record's group. *Shape:* (records,)."""
        ids, index = np.unique(names, return_inverse=True)
        return cls(index, ids)

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Records of each group: (groups,) int64."""
        return np.bincount(self.index, minlength=len(self.ids))

    def name(self, group: int) -> str:
        """A record's id: 64 bits in hexadecimal, or the string that it is."""
        return f"{id:016x}" if isinstance(id := self.ids[group], np.uint64) else str(id)

    def only(self, records: np.ndarray) -> Groups:
        """Of some records alone. *Shape:* records (records,) bool."""
        kept, index = np.unique(self.index[records], return_inverse=True)
        return Groups(index, self.ids[kept])

    def shuffled(self, seed: int) -> np.ndarray:
        """The groups in an order that depends on the seed and their names only: (groups,) int64."""
        digests = (hashlib.sha256(f"{seed}:{self.name(group)}".encode()).digest()[:8] for group in range(len(self.ids)))
        return np.argsort(np.fromiter((int.from_bytes(d, "big") for d in digests), np.uint64, len(self.ids)), kind="stable")


def find_groups(
    ids: np.ndarray,
    conversations: np.ndarray,
    openings: np.ndarray,
    texts: Callable[[np.ndarray], Sequence[str]],
    links: np.ndarray,
) -> Groups:
    """Groups of records that a chain of near-duplicate openings or shared conversations joins.

    `openings` are hashes of `prompt_key`, and `texts` gives what the conversations of some records open with. `links` are
    pairs of conversations that belong together. The result depends on the records alone, not on their order or files.
    *Shape:* ids, conversations, openings (records,), links (links, 2).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    records = len(ids)
    talk = np.unique(np.concatenate([conversations, links.ravel()]), return_inverse=True)[1]
    first, opening = np.unique(openings, return_index=True, return_inverse=True)[1:]
    order = np.argsort(first, kind="stable")  # openings as they come: the nearest of many are compared in that order
    near = np.empty_like(order)
    near[order] = order[near_labels(texts(first[order]))]
    opening = near[opening]
    tied = np.flatnonzero((np.bincount(talk) > 1)[talk[:records]] | (np.bincount(opening) > 1)[opening])
    names = ids.copy()
    if len(tied):  # most records hang together with no other, and are not worth a node
        ends = talk[tied], talk[records::2], -1 - opening[tied], talk[records + 1 :: 2]
        nodes, node = np.unique(np.concatenate(ends), return_inverse=True)
        left, right = np.split(node, 2)
        graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(nodes), len(nodes)))
        part = connected_components(graph, directed=False)[1][left[: len(tied)]]
        by_id = np.lexsort((ids[tied], part))
        names[tied] = ids[tied[by_id[np.searchsorted(part[by_id], part)]]]
    return Groups.of(names)


def sample(groups: Groups, limit: int, seed: int) -> np.ndarray:
    """At most `limit` records: whole groups in seeded order, passing over those that no longer fit (0: all records).

    Returns which records are taken: (records,) bool.
    """
    chosen = np.ones(len(groups.ids), bool)
    if 0 < limit < len(groups.index):
        chosen[:] = False
        chosen[_fill(groups.shuffled(seed), groups.sizes, limit)] = True
    return chosen[groups.index]


def split(groups: Groups, declared: np.ndarray, settings: DataConfig) -> np.ndarray:
    """The split of each record, whole groups at a time: its place in DECLARED. *Shape:* declared (records,) of such places.

    A declared split is honoured; where a group's records differ, the most protected one wins (test, tune, gate,
    train). Undeclared groups are divided by the configured shares, without test when a source declares one. A
    split that no source declares and that falls short of its share is filled up from declared train.
    """
    sizes = groups.sizes
    strongest = np.zeros(len(sizes), np.int8)
    np.maximum.at(strongest, groups.index, declared.astype(np.int8))
    present = {DECLARED[code] for code in np.unique(strongest)}
    held = [name for name in HELD if name != "test" or "test" not in present]
    order = groups.shuffled(settings.seed)
    free, train = order[strongest[order] == 0], order[strongest[order] == DECLARED.index("train")]
    missing = [name for name in held if name not in present]

    chosen = np.where(strongest > DECLARED.index("train"), strongest, 0)
    _assign(chosen, free, sizes, _targets(int(sizes[free].sum()), held, settings))
    both = np.concatenate([free, train])
    wanted = _targets(int(sizes[both].sum()), held, settings)
    short = {name: wanted[name] - int(sizes[chosen == DECLARED.index(name)].sum()) for name in missing}
    _assign(chosen, train, sizes, short)
    _rescue(chosen, both, sizes, missing)
    chosen[chosen == 0] = DECLARED.index("train")
    return chosen[groups.index]


def group_records(records: Sequence[Record], links: np.ndarray | None = None) -> list[Record]:
    """The records with `group` set by `find_groups`; on entry it names the conversation, of which `links` are hashes."""
    groups = find_groups(
        np.array([record.id for record in records]),
        np.array([hash64(record.group) for record in records]),
        np.array([hash64(prompt_key(record)) for record in records]),
        lambda rows: [first_turn(records[row]) for row in rows],
        np.empty((0, 2), np.int64) if links is None else links,
    )
    return [replace(record, group=groups.name(group)) for record, group in zip(records, groups.index, strict=True)]


def sample_groups(records: Sequence[Record], limit: int, seed: int) -> list[Record]:
    """The records that `sample` takes."""
    taken = sample(Groups.of(np.array([record.group for record in records])), limit, seed)
    return [record for record, kept in zip(records, taken, strict=True) if kept]


def split_records(records: Sequence[Record], settings: DataConfig) -> list[Record]:
    """The records with `split` set by `split`; on entry it holds the declared one, or nothing."""
    declared = np.array([DECLARED.index(record.split) for record in records])
    codes = split(Groups.of(np.array([record.group for record in records])), declared, settings)
    return [replace(record, split=DECLARED[code]) for record, code in zip(records, codes, strict=True)]


def _targets(total: int, held: Sequence[str], settings: DataConfig) -> dict[str, int]:
    """Records that each split gets out of `total`; shares are of train and `held` together."""
    shares = {name: getattr(settings, f"{name}_share") for name in HELD}
    whole = 1 - sum(share for name, share in shares.items() if name not in held)
    return {name: round(total * shares[name] / whole) for name in held}


def _assign(chosen: np.ndarray, order: np.ndarray, sizes: np.ndarray, targets: dict[str, int]) -> None:
    """Enter into `chosen` which groups, of those in `order` not chosen yet, fill each target. *Shape:* chosen (groups,)."""
    for name, target in targets.items():
        chosen[_fill(order[chosen[order] == 0], sizes, target)] = DECLARED.index(name)


def _rescue(chosen: np.ndarray, order: np.ndarray, sizes: np.ndarray, splits: Sequence[str]) -> None:
    """Give a split that every group was too large for the smallest one, while train keeps one."""
    for name in splits:
        left = order[chosen[order] == 0]
        if DECLARED.index(name) not in chosen and len(left) > 1:
            chosen[left[sizes[left].argmin()]] = DECLARED.index(name)


def _fill(order: np.ndarray, sizes: np.ndarray, target: int) -> list[int]:
    """Groups of at most `target` records together, in order, passing over those that no longer fit."""
    taken: list[int] = []
    for group in order:
        if target <= 0:
            break
        if sizes[group] <= target:
            taken.append(int(group))
            target -= int(sizes[group])
    return taken
