"""What a source holds: items, the turns of a conversation, and how turns become prompt/response items."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from moe_router.data.records import Message

SPEAKERS = {
    **dict.fromkeys(("user", "customer", "client", "human", "usuario", "usuaria", "cliente", "utilizador"), "user"),
    **dict.fromkeys(
        ("assistant", "agent", "bot", "gpt", "support", "assistente", "atendente", "agente", "suporte"), "assistant"
    ),
    **dict.fromkeys(("system", "sistema"), "system"),
}
"""Role of a speaker's name, case and accents aside."""
ROLES = {**SPEAKERS, "model": "assistant", "developer": "system"}
"""The same for messages; in a log these two are things that a ticket says: `Model: X200`."""
UNSAID = "text that no speaker says"
HISTORY = 64
"""Most messages that a record remembers: without a bound, a log of one conversation would cost the square of its length."""


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
    rule: str = ""
    """Name of the rule that rejects what stands here, where it is no turn that can be told apart."""
    reason: str = ""


def fold(text: str) -> str:
    """A name for comparing: case folded, accents removed."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def pair_turns(turns: Iterable[Turn], conversation: Item) -> Iterator[Item]:
    """Items of one conversation: each user turn with the answer right after it, earlier pairs as history.

    A turn without its counterpart becomes an item rejected as `unpaired_turn`, and so does a system turn after which no
    pair comes: every turn is accounted for. `conversation` carries what its items have in common.
    """
    history: list[Message] = []
    question: Turn | None = None
    unheard: list[Turn] = []
    for turn in turns:
        if turn.role == "system":
            unheard.append(turn)
            history.append(Message("system", turn.text))
        elif turn.role == "assistant" and question is not None:
            pair = replace(conversation, line=question.line, prompt=question.text, response=turn.text)
            yield replace(pair, history=tuple(history))
            if question.text.strip() and turn.text.strip():
                history += [Message("user", question.text), Message("assistant", turn.text)]
                _forget(history)
            question = None
            unheard.clear()
        elif not turn.role and not turn.rule:
            yield _unpaired(turn, conversation)
        else:
            if question is not None:
                yield _unpaired(question, conversation)
            question = turn if turn.role == "user" else None
            if question is None:
                yield _unpaired(turn, conversation)
    if question is not None:
        yield _unpaired(question, conversation)
    for turn in unheard:
        yield _unpaired(turn, conversation)


def _forget(history: list[Message]) -> None:
    """Cut the oldest messages beyond HISTORY, what the system said last."""
    while len(history) > HISTORY:
        del history[next((at for at, message in enumerate(history) if message.role != "system"), 0)]


def _unpaired(turn: Turn, conversation: Item) -> Item:
    item = replace(conversation, line=turn.line, prompt=turn.text)
    if turn.rule:
        return item.reject(turn.rule, turn.reason)
    reasons = {
        "user": "a user turn without an answer",
        "assistant": "an answer without a user turn before it",
        "system": "a system turn without a conversation",
    }
    return item.reject("unpaired_turn", reasons.get(turn.role, UNSAID))
