"""Chat logs: turns by speaker, and lines of marked interactions."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from moe_router.data.markers import ROLE, interaction, marked, marked_turns, parts
from moe_router.data.readers.source import Source
from moe_router.data.turns import SPEAKERS, UNSAID, Item, Turn, fold, pair_turns
from moe_router.errors import ConfigError, InputError

SAMPLE = 2000
"""Lines from which a log's form and speakers are learned."""
MAX_TURN = 1 << 20
"""Characters of a turn that are kept; one that goes on is rejected."""
Lines = Iterable[tuple[int, str]]

_CLOCK = r"\d{1,2}[:.h]\d{2}(?:[:.]\d{2})?(?:[.,]\d+)?(?:\s?[ap]\.?\s?m\.?)?(?:Z|[+-]\d{2}:?\d{2})?"
_DATE = r"\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}"
_STAMP = rf"(?:[\[(]\s*(?:{_DATE}[\sT,]*)?(?:{_CLOCK})?\s*[\])]|(?:{_DATE}[\sT,]*)?{_CLOCK}|{_DATE})\s*[-–|]?\s*"
_NAME = r"[^\W\d_][^:：\[\]<>\n#]{0,39}?"
_TURN = re.compile(
    rf"\s*(?P<stamp>{_STAMP})?(?:(?P<hash>#{{3}})\s*|\*\*)?(?P<name>{_NAME})"
    rf"\s*(?:{_STAMP})?(?:\*\*)?[:：](?:\*\*)?\s?(?P<text>.*)",
    re.IGNORECASE,
)
_STAMPED = re.compile(rf"\s*(?:[\[(]?(?:{_DATE}[\sT,]*)?{_CLOCK}[\])]?)\s*[-–|]?\s", re.IGNORECASE)
_UNSEEN = dict.fromkeys(map(ord, "\u200e\u200f\u202a\u202c\ufeff"))  # marks of direction that messengers put in


def read_log(source: Source) -> Iterator[Item]:
    """Items of a .txt file. Raises InputError when nobody speaks in it."""
    with source.text() as text:
        lines = iter(text)
        sample = list(itertools.islice(lines, SAMPLE))
        both = itertools.chain(sample, lines)
        marked = [line for _, line in sample if "###" in line and {"end"} & {role for role, _ in parts(line)}]
        if marked:
            whole = sum(line.lstrip().startswith("#") for line in marked) >= 0.5 * len(marked)
            said = interactions(both, by_line=whole)
        else:
            speakers = Speakers.learn(sample, source.settings.speakers)
            source.say(speakers.note)
            said = chat_log(both, speakers)
        spoken = False
        for start, turns in itertools.groupby(said, key=lambda pair: pair[0]):
            whole = Item(source.name, start, conversation=f"{source.name}:{start}")
            for item in pair_turns((turn for _, turn in turns), whole):
                spoken = spoken or item.reason != UNSAID
                yield item
        if not spoken and text.lines:
            raise InputError(
                f"{source.name} has no turns: begin each with `User:` or `Assistant:`, or say who speaks (--speakers)"
            )


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
        found = [_TURN.match(_plain(line)) for _, line in sample]
        heard = Counter(cls(roles).opening(_plain(line))[0] for _, line in sample)
        people, note = {}, ""
        if not given and not (heard["user"] and heard["assistant"]):
            people = _guess([m for m in found if m], heard, sum(bool(line.strip()) for _, line in sample))
            shown = ", ".join(f"{name}={role}" for name, role in people.items())
            note = f"guessed who speaks ({shown}); --speakers says otherwise" if people else ""
        roles |= {fold(name): role for name, role in people.items()}
        spoken = [(at, m, cls(roles).opening(_plain(sample[at][1]))[0]) for at, m in enumerate(found) if m]
        answers = [at for at, _, role in spoken if role == "assistant"]
        spaced = 2 * sum(at > 0 and not sample[at - 1][1].strip() for at in answers) > len(answers)
        labels = tuple(sorted({m["name"].strip() for _, m, role in spoken if role in ("user", "assistant")}))
        systems = any(role == "system" for _, _, role in spoken)
        return cls(roles, labels, spaced, systems, bool(people or given), any(m["hash"] for _, m, role in spoken if role), note)

    def opening(self, line: str) -> tuple[str, str]:
        """Role and text of a line that opens a turn; an empty role and the line itself for any other."""
        found = _TURN.match(line)
        if not found:
            return "", line
        name = fold(found["name"].strip())
        role = self.roles.get(name) or (ROLE.get(name, "") if found["hash"] else "")
        return (role, found["text"]) if role in ("user", "assistant", "system") else ("", line)


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
    loud = [name for name, count in names.most_common(None if trusted else 2) if count > 1]
    if len(loud) < 2 or (not trusted and 2 * sum(names[name] for name in loud) < lines):
        return {}
    first = next(m["name"].strip() for m in found if m["name"].strip() in loud)
    answering = next(name for name in loud if len(loud) > 2 or name != first)
    return {name: "assistant" if name == answering else "user" for name in loud}


def chat_log(lines: Lines, speakers: Speakers) -> Iterator[tuple[int, Turn]]:
    """Turns of a log with `User:` and `Assistant:`, each with the line at which its conversation begins.

    A blank line before a speaker ends a conversation, unless the log sets off each answer by one or begins each
    conversation with a system turn; a blank line before anything else is a paragraph of the turn it stands in. So does a
    comment: a line that begins with `#`. A line that holds an interaction whole is a conversation of its own, one that
    holds several is rejected.
    """
    log, gap = _Log(speakers), False
    for number, line in lines:
        if line.strip():
            yield from log.line(number, _plain(line), gap)
        gap = not line.strip()
    yield from log.flush()


class _Log:
    """The conversation being read, and its last turn, which may go on."""

    def __init__(self, speakers: Speakers) -> None:
        self.speakers = speakers
        self.start = 0
        """Line at which the conversation begins; 0 between two."""
        self.role, self.number, self.said, self.size = "", 0, list[str](), 0
        labels = "|".join(re.escape(label) for label in speakers.labels)
        self.inside = re.compile(rf"(?<=[\s.?!…])({labels})\s*:\s") if labels else None

    def line(self, number: int, line: str, gap: bool) -> Iterator[tuple[int, Turn]]:
        """Take in a line that is not blank; turns that it ends come out."""
        role, text = self.speakers.opening(line)
        whole = self._whole(number, line, role, text)
        comment = line.startswith("#") and not role and not self.speakers.hashes
        if whole or comment or (role and self._ends(role, gap)):
            yield from self.flush()
            self.start = 0
        if whole:
            yield from ((number, turn) for turn in whole)
        elif comment:
            return
        elif self.said and not role and not (self.speakers.people and _STAMPED.match(line)):
            self._add(["", line] if gap else [line])
        elif self.said and role == self.role and self.speakers.people:
            self._add([text])
        else:
            yield from self.flush()
            self.start = self.start or number
            self.role, self.number = role, number
            self._add([text])

    def flush(self) -> Iterator[tuple[int, Turn]]:
        """The last turn, if there is one."""
        if self.said:
            text = "\n".join(self.said)
            over = ("over_long", f"a turn of more than {MAX_TURN:,} characters") if self.size > MAX_TURN else ("", "")
            yield self.start, Turn("" if over[0] else self.role, text, self.number, *over)
        self.said, self.size = [], 0

    def _add(self, lines: list[str]) -> None:
        kept = max(0, MAX_TURN - self.size)
        self.size += sum(map(len, lines)) + len(lines)
        if kept:
            self.said += [line[:kept] for line in lines]

    def _ends(self, role: str, gap: bool) -> bool:
        """Whether a turn of `role` begins another conversation."""
        if self.speakers.systems:
            return role == "system"
        answers = self.role == "user" and role == "assistant" and self.speakers.spaced
        return gap and not answers and not self.speakers.people

    def _whole(self, number: int, line: str, role: str, text: str) -> list[Turn]:
        """The turns of a line that holds an interaction or more; none for any other."""
        if "###" in line:
            return list(marked_turns(line, number)) if marked(line) else []
        found = list(self.inside.finditer(text)) if role and self.inside else []
        roles = [role, *(self.speakers.roles[fold(m[1])] for m in found)]
        if roles == ["user", "assistant"]:
            return [Turn("user", text[: found[0].start()], number), Turn("assistant", text[found[0].end() :], number)]
        if any(pair == ("user", "assistant") for pair in itertools.pairwise(roles)):
            return [Turn("", line, number, "run_together", "several interactions in one line")]
        return []


def interactions(lines: Lines, by_line: bool) -> Iterator[tuple[int, Turn]]:
    """Turns of `### Comment: … ### REPLY: … ### END.`, each with the line at which its interaction begins.

    One is a line, or else goes on to its `### END.` or to the next comment.
    """
    block: list[str] = []
    start = size = 0
    for number, line in lines:
        roles = [role for role, _ in parts(line)] if "###" in line else []
        if block and (by_line or size > MAX_TURN or roles[:1] == ["user"]):
            yield from ((start, turn) for turn in interaction("\n".join(block), start))
            block, size = [], 0
        if block or line.strip():
            start = start if block else number
            block.append(line)
            size += len(line)
        if "end" in roles and not by_line:
            yield from ((start, turn) for turn in interaction("\n".join(block), start))
            block, size = [], 0
    if block:
        yield from ((start, turn) for turn in interaction("\n".join(block), start))


def _plain(line: str) -> str:
    return line if line.isascii() else unicodedata.normalize("NFC", line.translate(_UNSEEN))
