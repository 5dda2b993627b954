"""Dialogues that a model writes from a company's fact sheet, cleaned like any export and marked as synthetic.

A model that learns from model text learns its mistakes and its sameness with it (Shumailov et al. 2024), so that every
record says who wrote it, `prepare` lets it train only and up to a share, and no held-out split holds any.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from moe_router.config import DataConfig
from moe_router.data.clean import clean
from moe_router.data.cleaning.text import words
from moe_router.data.readers.logs import chat_log
from moe_router.data.readers.speakers import Speakers
from moe_router.data.records import SYNTHETIC, Message, Record
from moe_router.data.turns import Item, pair_turns
from moe_router.errors import InputError
from moe_router.progress import Progress, Silent
from moe_router.workspace import atomic

UNGROUNDED = "ungrounded"
"""The rule that rejects a dialogue whose answers give figures that the sheet lacks, or few of the fact's words."""
TASK = """\
Below are facts about a company, each with a conversation between a user who does not know it and an assistant who does. \
The assistant uses nothing but the fact. Both write in the language of the fact."""
SHOWN = (
    (
        "The reading room closes at 6 pm on Fridays and at 8 pm on other days.",
        "Until when can I read on a Friday?\nAssistant: The reading room closes at 6 pm on Fridays."
        "\nUser: And on Mondays?\nAssistant: On Mondays it closes at 8 pm.",
    ),
    (
        "Os sócios podem levar emprestados até cinco livros durante três semanas.",
        "Quantos livros posso levar?\nAssistant: Pode levar até cinco livros, durante três semanas.",
    ),
)
"""Facts with their conversations, which show the writer the form."""
STOP = ("\n\n", "\nFact:")
GROUNDED = 0.3
SHORTEST = 3
"""Words of the shortest fact; a shorter line is a heading."""
BATCH = 16
_SILENT = Silent()
_FIGURE = re.compile(r"\d+(?:[.,:]\d+)*")
_LEAD = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")


class Writer(Protocol):
    """Continues texts, such as `inference.writer.BaseWriter`."""

    id: str
    """Names the model in every record that it writes."""

    def write(self, prompts: Sequence[str], stop: Sequence[str], seed: int) -> list[str]:
        """What follows each prompt, up to the first of `stop`; equal seeds write equal texts."""


@dataclass(frozen=True)
class Synthesis:
    """What came of it."""

    path: Path
    writer: str
    facts: int
    asked: int
    """Dialogues that the writer was asked for."""
    kept: int
    """Dialogues written to `path`."""
    records: int
    """Pairs of prompt and response in them."""
    reasons: dict[str, int]
    """Dialogues rejected, by the first rule that one of their turns broke."""
    example: str = ""
    """The first of them, with its rule."""


def synthesize(
    sheet: Path,
    out: Path,
    writer: Writer,
    count: int,
    settings: DataConfig | None = None,
    seed: int = 0,
    progress: Progress = _SILENT,
) -> Synthesis:
    """Ask `writer` for `count` dialogues on the facts of a sheet, and write the good ones to `out`, one JSON line each.

    Every fact gets as many dialogues as the others, give or take one. A dialogue stays only if all its turns pass the
    cleaning rules and its answers keep to the fact. Raises InputError for a sheet without facts.
    """
    facts = read_facts(sheet)
    if count < 1:
        raise InputError(f"--count {count}: ask for one dialogue at least")
    draw = np.random.default_rng(seed)
    rounds = [draw.permutation(len(facts)) for _ in range(-(-count // len(facts)))]
    asked = [facts[at] for at in np.concatenate(rounds)[:count]]
    progress.stage("synthesize", count)
    texts: list[str] = []
    for start in range(0, count, BATCH):
        prompts = [prompt_of(fact) for fact in asked[start : start + BATCH]]
        texts += writer.write(prompts, STOP, int(draw.integers(1 << 31)))
        progress.advance(len(prompts))
    kept, rejected = _good(asked, texts, facts, settings or DataConfig())
    with atomic(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for fact, dialogue in kept:
            line = {"messages": list(map(vars, dialogue)), SYNTHETIC: writer.id, "fact": fact}
            file.write(f"{json.dumps(line, ensure_ascii=False)}\n")
    records = sum(message.role == "assistant" for _, dialogue in kept for message in dialogue)
    reasons = Counter(rule for rule, _ in rejected)
    example = next((f"{rule}: User:{text}" for rule, text in rejected), "")
    return Synthesis(out, writer.id, len(facts), count, len(kept), records, dict(sorted(reasons.items())), example)


def read_facts(sheet: Path) -> list[str]:
    """The facts of a text or Markdown file: a line each, list marks taken off; headings, comments and short lines are none.

    Raises InputError where the file cannot be read or holds none.
    """
    try:
        lines = sheet.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{sheet} cannot be read ({error}): give a UTF-8 text file with one fact a line") from error
    plain = (_LEAD.sub("", line).strip() for line in lines if not line.lstrip().startswith("#"))
    facts = list(dict.fromkeys(line for line in plain if len(words(line)) >= SHORTEST))
    if not facts:
        raise InputError(f"{sheet} holds no facts: write one a line, {SHORTEST} words at least")
    return facts


def prompt_of(fact: str) -> str:
    """What the writer continues: the task, facts with their dialogues, and the fact whose dialogue it is to write."""
    shown = "\n\n".join(f"Fact: {known}\nUser: {dialogue}" for known, dialogue in SHOWN)
    return f"{TASK}\n\n{shown}\n\nFact: {fact}\nUser:"


def _good(
    asked: Sequence[str], texts: Sequence[str], facts: Sequence[str], settings: DataConfig
) -> tuple[list[tuple[str, list[Message]]], list[tuple[str, str]]]:
    """Each dialogue that passes, with its fact, and each rejected text with its rule."""
    items = [item for number, text in enumerate(texts, 1) for item in _items(number, text)]
    cleaned = clean(items, replace(settings, pii="keep"))  # `prepare` decides on personal data, as for any export
    broken: dict[int, str] = {}
    for rejection in cleaned.rejected:
        broken.setdefault(rejection.line, rejection.rule)
    dialogues: dict[int, list[Record]] = {}
    for record in cleaned.records:
        dialogues.setdefault(int(record.source.rpartition(":")[2]), []).append(record)
    known = set(_FIGURE.findall(" ".join(facts)))
    kept, rejected = [], []
    for number, (fact, text) in enumerate(zip(asked, texts, strict=True), 1):
        own = dialogues.get(number, [])
        rule = broken.get(number) or ("" if own else "unpaired_turn")
        rule = rule or ("" if all(grounded(record.response, fact, known) for record in own) else UNGROUNDED)
        if rule:
            rejected.append((rule, text))
        else:
            last = own[-1]
            kept.append((fact, [*last.messages, Message("assistant", last.response)]))
    return kept, rejected


def grounded(answer: str, fact: str, figures: set[str]) -> bool:
    """Whether an answer gives no figure besides `figures`, and GROUNDED of its words of four letters or more are the fact's."""
    said = {word for word in words(answer) if len(word) > 3}
    return set(_FIGURE.findall(answer)) <= figures and len(said & set(words(fact))) >= max(1, GROUNDED * len(said))


def _items(number: int, text: str) -> Iterator[Item]:
    """The pairs of one dialogue, whose line is its number."""
    whole = Item("synthetic", number, conversation=f"synthetic {number}")
    lines = enumerate(f"User:{text}".splitlines(), 1)
    turns = (turn for _, turn in chat_log(lines, Speakers()))
    yield from pair_turns((replace(turn, line=number) for turn in turns), whole)
