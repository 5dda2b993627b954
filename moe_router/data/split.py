"""Division of records into train, gate, tune and test, so that neither similar prompts nor conversations cross."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from moe_router.config import DataConfig
from moe_router.data.cleaning.near import near_groups
from moe_router.data.records import SPLITS, Record

HELD = ("test", "tune", "gate")
"""The splits that no expert trains on, in the order in which they are filled."""


class _Bare(dict[int, int | None]):
    """str.translate table without punctuation, spaces and control characters, filled as characters turn up."""

    def __missing__(self, code: int) -> int | None:
        self[code] = None if unicodedata.category(chr(code))[0] in "PZC" else code
        return self[code]


_BARE = _Bare()


def first_turn(record: Record) -> str:
    """What the user opened the conversation with."""
    return next(message.content for message in record.messages if message.role == "user")


def prompt_key(record: Record) -> str:
    """The conversation's first user turn, for comparing: compatible forms, case, spaces and punctuation aside."""
    first = first_turn(record)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", first).casefold())
    return folded.translate(_BARE) or folded


def group_records(records: Sequence[Record], links: Iterable[tuple[str, str]] = ()) -> list[Record]:
    """The records with `group` set: the same for records joined by a chain of near-duplicate prompts or conversations.

    On entry `group` names the conversation, and `links` are pairs of conversations that belong together. The new
    name depends on the group's records alone, not on their order or files.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for one, other in links:
        parent[root(("conversation", one))] = root(("conversation", other))
    prompts: dict[str, str] = {}
    for record in records:
        key = prompt_key(record)
        prompts.setdefault(key, first_turn(record))
        parent[root(("prompt", key))] = root(("conversation", record.group))
    keys = list(prompts)
    for key, first in zip(keys, near_groups(list(prompts.values())), strict=True):
        parent[root(("prompt", key))] = root(("prompt", keys[first]))
    names: dict[tuple[str, str], str] = {}
    for record in records:
        key = root(("conversation", record.group))
        names[key] = min(names.get(key, record.id), record.id)
    return [replace(record, group=names[root(("conversation", record.group))]) for record in records]


def sample_groups(records: Sequence[Record], limit: int, seed: int) -> list[Record]:
    """At most `limit` records: whole groups in seeded order, passing over those that no longer fit (0: all records)."""
    if limit == 0 or len(records) <= limit:
        return list(records)
    sizes = Counter(record.group for record in records)
    chosen = set(_fill(_shuffled(sizes, seed), sizes, limit))
    return [record for record in records if record.group in chosen]


def split_records(records: Sequence[Record], settings: DataConfig) -> list[Record]:
    """The records with `split` set, whole groups at a time; `split` holds the declared one, or nothing, on entry.

    A declared split is honoured; where a group's records differ, the most protected one wins (test, tune, gate,
    train). Undeclared groups are divided by the configured shares, without test when a source declares one. A
    split that no source declares and that falls short of its share is filled up from declared train.
    """
    sizes = Counter(record.group for record in records)
    declared = _declared(records)
    present = set(declared.values())
    held = [split for split in HELD if split != "test" or "test" not in present]
    order = _shuffled(sizes, settings.seed)
    free = [group for group in order if not declared[group]]
    train = [group for group in order if declared[group] == "train"]
    missing = [split for split in held if split not in present]

    chosen = {group: split for group, split in declared.items() if split in HELD}
    targets = _targets(sum(sizes[group] for group in free), held, settings)
    _assign(chosen, free, sizes, targets)
    wanted = _targets(sum(sizes[group] for group in (*free, *train)), held, settings)
    filled: Counter[str] = Counter()
    for group, split in chosen.items():
        filled[split] += sizes[group]
    _assign(chosen, train, sizes, {split: wanted[split] - filled[split] for split in missing})
    _rescue(chosen, [*free, *train], sizes, missing)
    return [replace(record, split=chosen.get(record.group, "train")) for record in records]


def _declared(records: Sequence[Record]) -> dict[str, str]:
    """The most protected split that each group's records declare, or nothing."""
    strongest: dict[str, str] = defaultdict(str)
    for record in records:
        strongest[record.group] = max(strongest[record.group], record.split, key=("", *SPLITS).index)
    return strongest


def _targets(total: int, held: Sequence[str], settings: DataConfig) -> dict[str, int]:
    """Records that each split gets out of `total`; shares are of train and `held` together."""
    shares = {split: getattr(settings, f"{split}_share") for split in HELD}
    whole = 1 - sum(share for split, share in shares.items() if split not in held)
    return {split: round(total * shares[split] / whole) for split in held}


def _assign(chosen: dict[str, str], order: Sequence[str], sizes: Counter[str], targets: dict[str, int]) -> None:
    """Enter into `chosen` which groups, of those in `order` not chosen yet, fill each target."""
    for split, target in targets.items():
        left = [group for group in order if group not in chosen]
        chosen.update(dict.fromkeys(_fill(left, sizes, target), split))


def _rescue(chosen: dict[str, str], order: Sequence[str], sizes: Counter[str], splits: Sequence[str]) -> None:
    """Give a split that every group was too large for the smallest one, while train keeps one."""
    for split in splits:
        left = [group for group in order if group not in chosen]
        if split not in chosen.values() and len(left) > 1:
            chosen[min(left, key=sizes.__getitem__)] = split


def _fill(order: Iterable[str], sizes: Counter[str], target: int) -> list[str]:
    """Groups of at most `target` records together, in order, passing over those that no longer fit."""
    taken = []
    for group in order:
        if sizes[group] <= target:
            taken.append(group)
            target -= sizes[group]
    return taken


def _shuffled(groups: Iterable[str], seed: int) -> list[str]:
    """The groups in an order that depends on the seed and their names only."""
    return sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
