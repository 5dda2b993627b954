"""The sample company's exports, with the defects that real ones have."""

from __future__ import annotations

import csv
import datetime
import io
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moe_router.data.sample.company import Question, company_name, questions
from moe_router.workspace import write_text

TEST_RECORDS = 250
DEFECTS = 0.03
"""Share of rows with a defect; each of an export's kinds of defect gets a third."""
SECOND_QUESTION = 0.1
"""Share of conversations in which somebody asks their department's next question too."""
GREETING = 0.02
COLUMNS = ("ticket", "created", "department", "question", "answer", "key_fact", "split")


def write_sample(folder: Path, seed: int = 0) -> list[Path]:
    """Write chat.txt, tickets.csv, handbook.jsonl and a README into `folder`; returns the three exports.

    Later questions come only in the two exports that can say so in a `split` column.
    """
    draw = random.Random(f"exports {seed}")
    every = questions(seed)
    train = [q for q in every if not q.split]
    draw.shuffle(train)
    later = [*_test_questions(every, draw), *(q for q in every if q.split in ("tune", "gate"))]
    draw.shuffle(later)
    third = len(train) // 3
    tickets = [*train[third : 2 * third], *later[::2]]
    handbook = [*train[2 * third :], *later[1::2]]
    draw.shuffle(tickets)
    draw.shuffle(handbook)
    texts = {
        "chat.txt": _chat(train[:third], draw),
        "tickets.csv": _tickets(tickets, draw),
        "handbook.jsonl": _handbook(handbook, draw),
    }
    write_text(folder / "README.md", _readme(seed))
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _test_questions(every: Sequence[Question], draw: random.Random) -> list[Question]:
    """TEST_RECORDS test wordings, at least one of every fact, in random order."""
    shuffled = [q for q in every if q.split == "test"]
    draw.shuffle(shuffled)
    first = {id(q.fact): q for q in shuffled}
    chosen = {id(q) for q in first.values()}
    rest = [q for q in shuffled if id(q) not in chosen]
    test = [*first.values(), *rest][:TEST_RECORDS]
    draw.shuffle(test)
    return test


def _chat(asked: Sequence[Question], draw: random.Random) -> str:
    """A chat log. Now and then a conversation was exported twice, or ends with a question nobody answered."""
    blocks = []
    for number, conversation in enumerate(_conversations(asked, draw), 1001):
        lines = [f"# {_day(draw)} conversation {number}"]
        for question in conversation:
            greeting = "Hello.\n" if draw.random() < GREETING else ""
            lines.append(f"User: {greeting}{_worn(question.prompt, draw)}")
            lines.append(f"Assistant: {question.response}")
        if _defect(draw):
            lines.append("User: Thanks, one more thing")
        blocks += ["\n".join(lines) + "\n"] * (2 if _defect(draw) else 1)
    return "\n".join(blocks)


def _conversations(asked: Sequence[Question], draw: random.Random) -> Iterator[list[Question]]:
    """One question each, or two about the same department."""
    waiting = list(asked)
    while waiting:
        conversation = [waiting.pop()]
        fact = conversation[0].fact
        related = (q for q in reversed(waiting) if q.fact.department == fact.department and q.fact != fact)
        following = next(related, None)
        if following is not None and draw.random() < SECOND_QUESTION:
            waiting.remove(following)
            conversation.append(following)
        yield conversation


def _tickets(asked: Sequence[Question], draw: random.Random) -> str:
    """A ticket export. Now and then a ticket comes twice, or was closed without an answer."""
    rows: list[list[Any]] = []
    for question in asked:
        fact = question.fact
        row = [_day(draw), fact.department, _worn(question.prompt, draw), question.response, fact.value, question.split]
        rows.append(row)
        if _defect(draw):
            rows.append(row)
        if _defect(draw):
            rows.append([*row[:3], "", "", ""])
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows([number, *row] for number, row in enumerate(rows, 20001))
    return out.getvalue()


def _handbook(asked: Sequence[Question], draw: random.Random) -> str:
    """Handbook questions and answers. Now and then a line comes twice, or its prompt is gone."""
    lines = []
    for question in asked:
        row = {
            "prompt": _worn(question.prompt, draw),
            "response": question.response,
            "department": question.fact.department,
            "key_fact": question.fact.value,
            **({"split": question.split} if question.split else {}),
        }
        lines += [json.dumps(row)] * (2 if _defect(draw) else 1)
        if _defect(draw):
            lines.append(json.dumps({**row, "prompt": ""}))
    return "\n".join(lines) + "\n"


def _defect(draw: random.Random) -> bool:
    return draw.random() < DEFECTS / 3


def _worn(prompt: str, draw: random.Random) -> str:
    """The prompt as somebody in a hurry types it, now and then: in lower case, with spaces after it, or with a typo."""
    if not _defect(draw):
        return prompt
    at = draw.randrange(1, len(prompt) - 2)
    swapped = prompt[:at] + prompt[at + 1] + prompt[at] + prompt[at + 2 :]
    return draw.choice((prompt.lower(), f"{prompt}  ", swapped))


def _day(draw: random.Random) -> str:
    return (datetime.date(2026, 1, 5) + datetime.timedelta(days=draw.randrange(180))).isoformat()


def _readme(seed: int) -> str:
    return (
        f"# {company_name(seed)}, the sample company\n\n"
        f"A fictional retailer's exports, written by `moe_router.data.sample.write_sample` (seed {seed}; `moe-router demo "
        "--seed` makes another), under this project's licence.\n"
        "A chat log, a ticket table and handbook questions, with duplicates, gaps and typing errors as real exports have.\n"
        "`key_fact` is what a right answer must contain; `split` marks the questions asked later, in new words.\n"
    )
