"""An item as a record, and what records have in common that say the same."""

from __future__ import annotations

import re
from dataclasses import replace

from moe_router.data.cleaning.text import repair, tidy, words
from moe_router.data.records import Message, Record
from moe_router.data.turns import Item
from moe_router.workspace import digest_json


def as_record(item: Item) -> tuple[Record, bool]:
    """The item as a record, and whether its text had been decoded wrongly."""
    before = (*(message.content for message in item.history), item.prompt, item.response)
    after = [repair(text) for text in before]
    *turns, prompt, response = (tidy(text) for text in after)
    record = Record(
        id="",
        prompt=prompt,
        response=response,
        history=tuple(Message(message.role, text) for message, text in zip(item.history, turns, strict=True)),
        split=item.split,
        source=f"{item.file}:{item.line}",
        group=item.conversation or f"{item.file}:{item.line}",
        meta=item.meta,
    )
    return identified(record), any(one != other for one, other in zip(before, after, strict=True))


def identified(record: Record) -> Record:
    """The record with the id of its text."""
    turns = [[m.role, m.content] for m in record.history]
    return replace(record, id=digest_json([turns, record.prompt, record.response])[:16])


def likeness(record: Record) -> list[list[str]]:
    """What duplicates have in common: the words of the conversation and its answer, case and spacing aside."""
    turns = (*record.messages, Message("assistant", record.response))
    return [[m.role, " ".join(m.content.casefold().split())] for m in turns]


def kind(record: Record) -> int:
    """What near-duplicates have in common besides their prompts, as a number: history, figures and answer."""
    history = [words(message.content) for message in record.history]
    return int(digest_json([history, sorted(re.findall(r"\d+", record.prompt)), words(record.response)])[:16], 16)
