"""Who speaks in a chat log: the usual names, those the user gave, or a guess that is said."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moe_router.data.markers import ROLE
from moe_router.data.turns import SPEAKERS, fold
from moe_router.errors import ConfigError

# Every repetition is bounded: a line of a million spaces must not be tried in a million ways.
_CLOCK = r"\d{1,2}[:.h]\d{2}(?:[:.]\d{2})?(?:[.,]\d{1,9})?(?:\s?[ap]\.?\s?m\.?)?(?:Z|[+-]\d{2}:?\d{2})?"
_DATE = r"\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}"
_WHEN = rf"(?:{_DATE}[\sT,]{{0,4}})?{_CLOCK}"
_STAMP = rf"(?:\[[^\]\n]{{0,40}}\]|\({_WHEN}\)|{_WHEN}|{_DATE})\s{{0,3}}[-–|]?\s{{0,3}}"
_NAME = r"[^\W\d_][^:：\[\]<>\n#]{0,39}?"
_TURN = re.compile(
    rf"\s{{0,40}}(?P<stamp>{_STAMP})?(?:(?P<hash>#{{3}})\s{{0,3}}|\*\*)?(?P<name>{_NAME})"
    rf"\s{{0,3}}(?:{_STAMP})?(?:\*\*)?[:：](?:\*\*)?\s?(?P<text>.*)",
    re.IGNORECASE,
)
STAMPED = re.compile(rf"\s{{0,40}}[\[(]?{_WHEN}[\])]?\s{{0,3}}[-–|]?\s", re.IGNORECASE)
"""A line that begins with the time of day."""
_INSIDE = re.compile(r"(?<=[\s.?!…])([^\W\d_]{1,40})\s{0,3}:\s")
_UNSEEN = dict.fromkeys(map(ord, "\u200e\u200f\u202a\u202c\ufeff"))  # marks of direction that messengers put in


@dataclass(frozen=True)
class Speakers:
    """Who speaks in a log, and how it is laid out."""

    roles: Mapping[str, str] = field(default_factory=lambda: SPEAKERS)
    """Role of each folded name."""
    labels: tuple[str, ...] = ()
    """The names as the log writes them."""
    spaced: bool = False
    """Whether most answers come after a blank line."""
    systems: bool = False
    """Whether conversations begin with a system turn."""
    people: bool = False
    """Whether speakers go by their own names: then several messages in a row are one turn."""
    hashes: bool = False
    """Whether turns begin with `###`; elsewhere a line that begins with `#` is a comment."""
    note: str = ""

    @classmethod
    def learn(cls, sample: Sequence[tuple[int, str]], named: str = "") -> Speakers:
        """From the first lines of a log and what the user said of it: `Ana=user,Rui=assistant`.

        Where a side is missing under the usual names, the two names that speak most take it, the first to speak as the
        user; that is a guess, and `note` says so. Raises ConfigError where `named` is not of that form.
        """
        given = _named(named)
        roles = {**SPEAKERS, **given}
        found = [_TURN.match(plain(line)) for _, line in sample]
        heard = Counter(cls(roles).opening(plain(line))[0] for _, line in sample)
        people, note = {}, ""
        if not given and not (heard["user"] and heard["assistant"]):
            people = _guess([m for m in found if m], heard, sum(bool(line.strip()) for _, line in sample))
            shown = ", ".join(f"{name}={role}" for name, role in people.items())
            note = f"guessed who speaks ({shown}); --speakers says otherwise" if people else ""
        roles |= {fold(name): role for name, role in people.items()}
        spoken = [(at, m, cls(roles).opening(plain(sample[at][1]))[0]) for at, m in enumerate(found) if m]
        answers = [at for at, _, role in spoken if role == "assistant"]
        labels = {m["name"].strip() for _, m, role in spoken if role in ("user", "assistant")}
        labels = {label for label in labels if fold(label) in roles}
        if not answers:  # then they may stand in the line of their question
            inside = [name for _, m, role in spoken if role == "user" for name in _INSIDE.findall(m["text"])]
            labels |= {name for name in inside if roles.get(fold(name)) == "assistant"}
        return cls(
            roles,
            tuple(sorted(labels)),
            spaced=2 * sum(at > 0 and not sample[at - 1][1].strip() for at in answers) > len(answers),
            systems=any(role == "system" for _, _, role in spoken),
            people=bool(people or given),
            hashes=any(m["hash"] for _, m, role in spoken if role),
            note=note,
        )

    def opening(self, line: str) -> tuple[str, str]:
        """Role and text of a line that opens a turn; an empty role and the line itself for any other."""
        found = _TURN.match(line)
        if not found:
            return "", line
        name = fold(found["name"].strip())
        role = self.roles.get(name) or (ROLE.get(name, "") if found["hash"] else "")
        if role in ("user", "assistant", "system"):
            return role, found["text"]
        return "", found["text"] if role == "input" else line


def _named(text: str) -> dict[str, str]:
    named = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, role = part.rpartition("=")
        if not name.strip() or role.strip() not in ("user", "assistant", "system"):
            raise ConfigError(f"data.speakers: {part!r} is not of the form name=user or name=assistant")
        named[fold(name.strip())] = role.strip()
    return named


def _guess(found: Sequence[re.Match[str]], heard: Counter[str | None], lines: int) -> dict[str, str]:
    """Names that speak in place of the missing usual ones, with their roles; empty where it cannot be told."""
    stamped = [m for m in found if m["stamp"]]
    trusted = 2 * len(stamped) > len(found)
    names = Counter(m["name"].strip() for m in (stamped if trusted else found) if fold(m["name"].strip()) not in SPEAKERS)
    known = heard["user"] + heard["assistant"]
    if known:
        missing = "assistant" if heard["user"] else "user"
        top = [name for name, count in names.items() if trusted or 2 * count >= known]
        return dict.fromkeys(top if trusted or len(top) == 1 else (), missing)
    loud = [name for name, count in names.most_common(None if trusted else 2) if trusted or count > 1]
    if len(loud) < 2 or (not trusted and 2 * sum(names[name] for name in loud) < lines):
        return {}
    first = next(m["name"].strip() for m in found if m["name"].strip() in loud)
    answering = next(name for name in loud if len(loud) > 2 or name != first)
    return {name: "assistant" if name == answering else "user" for name in loud}


def plain(line: str) -> str:
    """The line composed (NFC), without the marks that messengers put in."""
    return line if line.isascii() else unicodedata.normalize("NFC", line.translate(_UNSEEN))
