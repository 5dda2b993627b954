"""Chat logs: turns by speaker, and lines of marked interactions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from moe_router.data.markers import interaction, marked, marked_turns, parts
from moe_router.data.readers.source import Source
from moe_router.data.readers.speakers import STAMPED, Speakers, plain
from moe_router.data.turns import UNSAID, Item, Turn, fold, pair_turns
from moe_router.errors import InputError

SAMPLE = 2000
"""Lines from which a log's form and speakers are learned."""
MAX_TURN = 1 << 20
"""Characters of a turn that are kept; one that goes on is rejected."""
Lines = Iterable[tuple[int, str]]


def read_log(source: Source) -> Iterator[Item]:
    """Items of a .txt file. Raises InputError when nobody speaks in it."""
    with source.text() as text:
        lines = iter(text)
        sample = list(itertools.islice(lines, SAMPLE))
        both = itertools.chain(sample, lines)
        ends = [roles for _, line in sample if "###" in line and "end" in (roles := [role for role, _ in parts(line)])]
        if ends:
            said = interactions(both, by_line=2 * sum("user" in roles for roles in ends) > len(ends))
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


def chat_log(lines: Lines, speakers: Speakers) -> Iterator[tuple[int, Turn]]:
    """Turns of a log with `User:` and `Assistant:`, each with the line at which its conversation begins.

    A blank line before a speaker ends a conversation, unless the log sets off each answer by one or begins each
    conversation with a system turn; a blank line before anything else is a paragraph of the turn it stands in. So do
    comments, which are lines that begin with `#`, before a speaker. A line that holds an interaction whole is a
    conversation of its own, one that holds several is rejected.
    """
    log, gap = _Log(speakers), False
    for number, line in lines:
        if line.strip():
            yield from log.line(number, plain(line), gap)
        gap = not line.strip()
    yield from log.flush()


class _Log:
    """The conversation being read, and its last turn, which may go on."""

    def __init__(self, speakers: Speakers) -> None:
        self.speakers = speakers
        self.start = 0
        """Line at which the conversation begins; 0 between two."""
        self.role, self.number, self.said, self.size = "", 0, list[str](), 0
        self.hashed: list[str] = []
        """Lines with `#` since the last other line: comments, unless the turn goes on after them."""
        labels = "|".join(re.escape(label) for label in speakers.labels)
        self.inside = re.compile(rf"(?<=[\s.?!…])({labels})\s{{0,3}}:\s") if labels else None

    def line(self, number: int, line: str, gap: bool) -> Iterator[tuple[int, Turn]]:
        """Take in a line that is not blank; turns that it ends come out."""
        role, text = self.speakers.opening(line)
        whole = self._whole(number, line, role, text)
        if line.startswith("#") and not (role or whole or self.speakers.hashes):
            self.hashed += [line] if len(self.hashed) < SAMPLE else []
            return
        if whole or (role and (self.hashed or self._ends(role, gap))):
            yield from self.flush()
            self.start = 0
        elif self.hashed and self.said:
            self._add(self.hashed)
        self.hashed = []
        if whole:
            yield from ((number, turn) for turn in whole)
        elif self.said and not role and not (self.speakers.people and STAMPED.match(line)):
            self._add(["", text] if gap else [text])
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
            text = "\n".join(self.said).strip()
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
            asked, answered = text[: found[0].start()].strip(), text[found[0].end() :].strip()
            return [Turn("user", asked, number), Turn("assistant", answered, number)]
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
