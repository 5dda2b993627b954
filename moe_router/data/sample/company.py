"""The fictional sample company: what it knows, and every question that its people ask.

A furniture and appliance retailer with its own vans. Its departments share words as they do in real life: orders, cards,
limits, approval and days come up in most of them.
"""

from __future__ import annotations

import random
import re
import unicodedata
from dataclasses import dataclass

from moe_router.data.sample.topics import TOPICS
from moe_router.data.sample.wordings import ANSWERED, ASKED, ASKED_LATER

PHRASINGS = 12
"""Wordings in which a fact is asked for in training."""
NAMES = (0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1)
"""Which name of the topic each phrasing uses."""
NEW_NAME = 2
"""The name that later questions use: no training record has it, as with people who ask in their own words."""

PEOPLE = (
    "Ana Reis", "Bruno Costa", "Carla Stone", "David Park", "Elena Cruz", "Frank Mills", "Grace Hill", "Hugo Lane",
    "Irene Wolf", "James Ford", "Karen Bell", "Louis Grant", "Maria Silva", "Nadia Cole", "Oscar Dunn", "Paula West",
    "Peter Nash", "Rita Moss", "Simon Hart", "Teresa Vale", "Victor Roy", "Wendy Page", "Sarah Cook", "Martin Young",
)  # fmt: skip
SYSTEMS = (
    "Atlas", "Beacon", "Canvas", "Delta", "Ember", "Falcon", "Garden", "Harbour", "Island", "Jupiter", "Keystone",
    "Lantern", "Meadow", "Nova", "Orchard", "Pioneer", "Quartz", "Raven", "Summit", "Temple", "Unity", "Voyage",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
HOURS = ("8", "9", "10", "11", "noon", "2", "3", "4")

VALUES: dict[str, tuple[str, ...]] = {
    "days": tuple(f"{n} days" for n in range(3, 64)),
    "who": PEOPLE,
    "limit": tuple(f"{n} euros" for n in range(15, 1000, 15)),
    "when": tuple(f"{day} at {hour}" for day in WEEKDAYS for hour in HOURS),
    "where": tuple(f"room {n}" for n in range(101, 160)),
    "form": tuple(f"form {n}" for n in range(11, 99)),
    "system": SYSTEMS,
}
"""Each fact's value is drawn from its kind's list."""

FIRST = ("Norvale", "Larchfield", "Brightwater", "Ribeira", "Oakmere", "Halden", "Stonebrook", "Marlow", "Fenwick", "Alderley")
SECOND = ("Home", "Living", "Interiors", "Furnishings", "House")


@dataclass(frozen=True)
class Fact:
    """One thing the company knows."""

    department: str
    names: tuple[str, str, str]
    """What the topic is called; the first is what answers call it."""
    kind: str
    """One of VALUES."""
    value: str


@dataclass(frozen=True)
class Question:
    """One way to ask for a fact, with its answer."""

    fact: Fact
    prompt: str
    response: str
    split: str = ""
    """`test`, `tune` or `gate` for a later question in wordings and with a name that training never sees, else empty."""


def company_name(seed: int = 0) -> str:
    """The company's name."""
    draw = random.Random(f"name {seed}")
    return f"{draw.choice(FIRST)} {draw.choice(SECOND)}"


def facts(seed: int = 0) -> tuple[Fact, ...]:
    """The facts of the company that `seed` makes, by department."""
    draw = random.Random(f"facts {seed}")
    return tuple(
        Fact(department, (usual, second, third), kind, draw.choice(VALUES[kind]))
        for department, topics in TOPICS.items()
        for usual, second, third, *kinds in topics
        for kind in kinds
    )


def questions(seed: int = 0) -> list[Question]:
    """Every fact asked in PHRASINGS wordings, and in those kept for later; no two have the same prompt.

    Each fact is always answered in the same words, as from a manual.
    """
    draw = random.Random(f"questions {seed}")
    made: list[Question] = []
    for fact in facts(seed):
        names = draw.sample([fact.names[i] for i in NAMES], PHRASINGS)
        asked = draw.sample(ASKED[fact.kind], PHRASINGS)
        answer = _capital(draw.choice(ANSWERED[fact.kind]).format(t=fact.names[0], v=fact.value))
        made += (Question(fact, _capital(w.format(t=n)), answer) for w, n in zip(asked, names, strict=True))
        later = (_capital(w.format(t=fact.names[NEW_NAME])) for w in ASKED_LATER[fact.kind])
        splits = ("test", "test", draw.choice(("tune", "gate")))
        made += (Question(fact, prompt, answer, split) for prompt, split in zip(later, splits, strict=True))
    return made


def key_fact_found(answer: str, key_fact: str) -> bool:
    """Whether the answer states the key fact, case and spacing aside.

    Only whole words and numbers count: "4 days" is not in "34 days", nor "540 euros" in "1,540 euros".
    "Monday at 8" is not in "Monday at 8:30" either.
    """
    words = r"\s+".join(re.escape(word) for word in _folded(key_fact).split())
    whole = rf"(?<!\w)(?<!\d[.,:]){words}(?!\w)(?![.,:]\d)"
    return bool(words) and re.search(whole, _folded(answer)) is not None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text).casefold())
