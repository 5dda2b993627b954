"""From items to records: text normalised, and what cannot be learned from set aside with the name of the rule."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from moe_router.data.records import SPLITS, Message, Record
from moe_router.data.turns import Item
from moe_router.workspace import digest_json

RULES = {
    "malformed": "the line cannot be parsed",
    "unpaired_turn": "a turn without its counterpart",
    "empty_prompt": "the prompt has no text",
    "empty_response": "the response has no text",
    "duplicate": "history, prompt and response equal an earlier record's",
}
"""Every rule that rejects an item; the first that applies is the one named."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Rejection:
    """A line of rejected.jsonl."""

    file: str
    line: int
    rule: str
    reason: str
    text: str


@dataclass(frozen=True)
class Cleaned:
    """Records and rejections; together they are as many as the items."""

    records: tuple[Record, ...]
    """`split` is the one declared, `group` the conversation; the split stage replaces both."""
    rejected: tuple[Rejection, ...]
    links: tuple[tuple[str, str], ...]
    """Pairs of conversations that share a record of which one copy was rejected as a duplicate."""

    @property
    def reasons(self) -> dict[str, int]:
        """Rejections by rule."""
        return dict(sorted(Counter(rejection.rule for rejection in self.rejected).items()))


def tidy(text: str) -> str:
    """NFC, `\\n` line ends, no control characters, no trailing spaces, no blank edges."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "\n".join(line.rstrip() for line in _CONTROLS.sub("", text).split("\n")).strip()


def clean(items: Iterable[Item]) -> Cleaned:
    """Apply every rule to every item, in order; of equal records the first stays.

    The copy that stays takes the more protected split of the two, in the order train, gate, tune, test.
    """
    kept: dict[str, Record] = {}
    rejected: list[Rejection] = []
    links: list[tuple[str, str]] = []
    for item in items:
        record = _record(item)
        rule, reason = _refusal(item, record)
        key = "" if rule else _likeness(record)
        first = kept.get(key)
        if first is not None:
            rule, reason = "duplicate", f"equal to {first.source}"
            kept[key] = replace(first, split=max(first.split, record.split, key=("", *SPLITS).index))
            links.append((first.group, record.group))
        if rule:
            rejected.append(
                Rejection(item.file, item.line, rule, reason, "\n".join(filter(None, (item.prompt, item.response))))
            )
        else:
            kept[key] = record
    return Cleaned(tuple(kept.values()), tuple(rejected), tuple(links))


def _record(item: Item) -> Record:
    history = tuple(Message(message.role, tidy(message.content)) for message in item.history)
    prompt, response = tidy(item.prompt), tidy(item.response)
    return Record(
        id=digest_json([[[m.role, m.content] for m in history], prompt, response])[:16],
        prompt=prompt,
        response=response,
        history=history,
        split=item.split,
        source=f"{item.file}:{item.line}",
        group=item.conversation or f"{item.file}:{item.line}",
        meta=item.meta,
    )


def _refusal(item: Item, record: Record) -> tuple[str, str]:
    """Rule and reason that reject the item by itself; both empty when it is fine."""
    if item.rule:
        return item.rule, item.reason
    empty = "empty_prompt" if not record.prompt else "empty_response" if not record.response else ""
    return empty, RULES.get(empty, "")


def _likeness(record: Record) -> str:
    """What duplicates have in common: the words of the conversation and its answer, case and spacing aside."""
    turns = [
        [m.role, " ".join(m.content.casefold().split())] for m in (*record.messages, Message("assistant", record.response))
    ]
    return digest_json(turns)
