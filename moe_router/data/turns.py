"""From the turns of a conversation to prompt/response items, and the chat-log form of a conversation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from moe_router.data.records import Message

SPEAKERS = {
    **dict.fromkeys(("user", "customer", "human", "usuario", "usuaria", "cliente"), "user"),
    **dict.fromkeys(("assistant", "agent", "bot", "gpt", "assistente", "atendente", "agente"), "assistant"),
    **dict.fromkeys(("system", "sistema"), "system"),
}
"""Role of a speaker's name, case and accents aside."""
ROLES = {**SPEAKERS, "model": "assistant", "developer": "system"}
"""The same for messages; in a log these two are things that a ticket says: `Model: X200`."""

_STAMP = r"(?:\[[^\]]*\]\s*|\d[\d/.\-T ,]*:\d[\d:.Z]*\s*(?:[-–|]\s*)?)?"
_TURN = re.compile(rf"\s*{_STAMP}([^\W\d_]+)\s*[:：]\s?(.*)")


@dataclass(frozen=True)
class Item:
    """One example as a source holds it: a pair, or something that cannot be made one (then `rule` says why)."""

    file: str
    line: int
    """Line of the file, or row of a Parquet table, counted from 1."""
    prompt: str = ""
    response: str = ""
    history: tuple[Message, ...] = ()
    split: str = ""
    """The split that the source declares, one of SPLITS, or empty."""
    conversation: str = ""
    """Items with the same value belong to the same conversation."""
    meta: dict[str, str] = field(default_factory=dict)
    rule: str = ""
    """Name of the rule that rejects the item already while reading; empty for a pair."""
    reason: str = ""

    def reject(self, rule: str, reason: str) -> Item:
        """A copy that is rejected by `rule`."""
        return replace(self, rule=rule, reason=reason)


@dataclass(frozen=True)
class Turn:
    """What one speaker says at once; the role is empty when nobody is named."""

    role: str
    text: str
    line: int


def fold(text: str) -> str:
    """A name for comparing: case folded, accents removed."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def pair_turns(turns: Iterable[Turn], conversation: Item) -> Iterator[Item]:
    """Items of one conversation: each user turn with the answer right after it, earlier pairs as history.

    A turn without its counterpart becomes an item rejected as `unpaired_turn`, so every turn but the system's is
    accounted for. `conversation` carries what its items have in common.
    """
    history: list[Message] = []
    question: Turn | None = None
    for turn in turns:
        if turn.role == "system":
            history.append(Message("system", turn.text))
        elif turn.role == "assistant" and question is not None:
            pair = replace(conversation, line=question.line, prompt=question.text, response=turn.text)
            yield replace(pair, history=tuple(history))
            if question.text.strip() and turn.text.strip():
                history += [Message("user", question.text), Message("assistant", turn.text)]
            question = None
        else:
            if question is not None:
                yield _unpaired(question, conversation)
            question = turn if turn.role == "user" else None
            if question is None:
                yield _unpaired(turn, conversation)
    if question is not None:
        yield _unpaired(question, conversation)


def _unpaired(turn: Turn, conversation: Item) -> Item:
    reasons = {"user": "a user turn without an answer", "assistant": "an answer without a user turn before it"}
    item = replace(conversation, line=turn.line, prompt=turn.text)
    return item.reject("unpaired_turn", reasons.get(turn.role, "text that no speaker says"))


def chat_log(lines: Sequence[str]) -> Iterator[list[Turn]]:
    """Conversations of a log with `User:` and `Assistant:` turns.

    A line that begins with `#` ends a conversation. So does a blank line before a speaker, unless the log sets off
    each answer by a blank line; a blank line before anything else is a paragraph of the turn it stands in.
    """
    spaced = _answers_set_off(lines)
    turns: list[tuple[str, int, list[str]]] = []
    gap = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            gap = True
            continue
        role, text = _speaker(line)
        answers = spaced and role == "assistant" and turns and turns[-1][0] == "user"
        if turns and (line.startswith("#") or (role and gap and not answers)):
            yield _joined(turns)
            turns = []
        if role or not (turns or line.startswith("#")):
            turns.append((role, number, [text]))
        elif turns:
            turns[-1][2].extend(["", text] if gap else [text])
        gap = False
    if turns:
        yield _joined(turns)


def _joined(turns: list[tuple[str, int, list[str]]]) -> list[Turn]:
    return [Turn(role, "\n".join(lines), number) for role, number, lines in turns]


def _speaker(line: str) -> tuple[str, str]:
    """Role and text of a line that opens a turn; an empty role and the line itself for any other."""
    found = _TURN.match(unicodedata.normalize("NFC", line))
    role = SPEAKERS.get(fold(found[1]), "") if found else ""
    return (role, found[2]) if found and role else ("", line)


def _answers_set_off(lines: Sequence[str]) -> bool:
    """Whether most answers come after a blank line."""
    answers = [number for number, line in enumerate(lines) if _speaker(line)[0] == "assistant"]
    return 2 * sum(number > 0 and not lines[number - 1].strip() for number in answers) > len(answers)
