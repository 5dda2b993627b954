"""Chats rewritten from documents: a section's heading becomes a question, its text the answer."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

FORMATS = (
    ("User: {q}\nAssistant: {a}", 8),
    ("### Human: {q}\n### Assistant: {a}", 1),
    ("### User:\n{q}\n\n### Assistant:\n{a}", 1),
    ("### Instruction:\n{q}\n\n### Response:\n{a}", 1),
    ("Question: {q}\nAnswer: {a}", 1),
)
"""The ways a turn is written, with how often each is taken."""

ABOUT = (
    "What is {h}?", "Explain {h}.", "Tell me about {h}.", "What do I need to know about {h}?", "Can you describe {h}?",
    "I have a question about {h}.", "Give me an overview of {h}.", "{h}?", "Could you help me understand {h}?",
    "What does \"{h}\" mean?", "Please summarise {h} for me.", "I'd like to learn about {h}.",
)  # fmt: skip
ABOUT_IN = (
    "In {t}, what is {h}?", "What does {t} say about {h}?", "Explain {h} with regard to {t}.", "{t}: {h}?",
    "I'm reading about {t}. What about {h}?", "About {t}: tell me more on {h}.",
)  # fmt: skip
DOING = (
    "How do I {h}?", "How can I {h}?", "What are the steps to {h}?", "I need to {h}. What do I do?", "Please show me how to {h}.",
    "What is the way to {h}?", "Hi, I want to {h}.", "Could you tell me how to {h}?",
)  # fmt: skip
GERUND = ("How does {h} work?", "Explain {h}.", "What should I know about {h}?", "What is involved in {h}?")
VERBS = frozenset(
    "add adjust allow apply approve archive assign attach back book build calculate call cancel change check choose clear close "
    "collect combine compare complete configure confirm connect control convert copy correct create customize define delete "
    "deploy design determine develop disable download edit enable enter evaluate export filter find fix generate get give grant "
    "handle identify import improve include insert install invite link list load locate make manage mark measure merge migrate "
    "modify monitor move open order organize pay perform place plan post prepare prevent print process protect provide publish "
    "receive reconcile record register release remove rename repair replace report request reset resolve restore retrieve "
    "return review revoke run save schedule search select send set share show sign specify start stop store submit switch "
    "synchronize test track transfer troubleshoot turn uninstall update upgrade upload use validate verify view work write".split()
)
LONGEST = 1_400
"""Characters of an answer; later paragraphs are left out."""


def pairs(document: str, random: random.Random) -> Iterator[str]:
    """The chats made of one document: each of its sections once, sometimes two or three in one conversation."""
    title, *blocks = [block.strip() for block in document.split("\n\n") if block.strip()]
    turns = [(_question(title, heading, random), _cut(text)) for heading, text in _sections(title, blocks)]
    turns = [(question, answer) for question, answer in turns if len(answer) >= 80]
    while turns:
        count = random.choice((1, 1, 1, 1, 2, 3))
        chat, turns = turns[:count], turns[count:]
        shape = random.choices([form for form, _ in FORMATS], [weight for _, weight in FORMATS])[0]
        yield "\n".join(shape.format(q=question, a=answer) for question, answer in chat)


def is_heading(block: str) -> bool:
    """Whether a block of lines reads as a heading."""
    plain = "\n" not in block and 3 <= len(block) <= 80 and len(block.split()) <= 12
    return plain and block[-1] not in ".:;,!" and block[0].isupper() and not re.search(r"[|=<>{}\[\]]|https?:", block)


def _sections(title: str, blocks: list[str]) -> Iterator[tuple[str, str]]:
    heading, text = title if is_heading(title) else "", []
    for block in blocks:
        if is_heading(block):
            if heading and text:
                yield heading, "\n\n".join(text)
            heading, text = block, []
        else:
            text.append(block)
    if heading and text:
        yield heading, "\n\n".join(text)


def _question(title: str, heading: str, random: random.Random) -> str:
    if heading.endswith("?"):
        return heading
    first, _, rest = heading.partition(" ")
    word = first.lower()
    if word == "how" and rest.startswith("to "):
        return random.choice(DOING).format(h=rest[3:])
    if word in VERBS and rest:
        return random.choice(DOING).format(h=f"{word} {rest}")
    if word.endswith("ing") and rest and word[:-3] not in ("", "morn", "even"):
        return random.choice(GERUND).format(h=f"{word} {rest}")
    if heading != title and random.random() < 0.5:
        return random.choice(ABOUT_IN).format(h=_lower(heading), t=title)
    return random.choice(ABOUT).format(h=_lower(heading))


def _lower(heading: str) -> str:
    """The heading as part of a sentence: names and abbreviations keep their capitals."""
    first, _, rest = heading.partition(" ")
    return f"{first.lower()} {rest}".strip() if first[1:].islower() and not any(c.isupper() for c in rest) else heading


def _cut(text: str) -> str:
    kept, size = [], 0
    for paragraph in text.split("\n\n"):
        size += len(paragraph) + 2
        if size > LONGEST:
            break
        kept.append(paragraph)
    return "\n\n".join(kept)
