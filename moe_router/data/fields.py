"""Which fields of a table or JSON object are the prompt and the response, and items made of its rows."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moe_router.config import DataConfig
from moe_router.data.markers import marked_turns, misplaced
from moe_router.data.records import Message
from moe_router.data.turns import ROLES, Item, Turn, fold, pair_turns
from moe_router.errors import InputError

PROMPT_NAMES = (
    *("prompt", "question", "instruction", "query", "input", "request", "customer_message", "user_message"),
    *("pergunta", "instrucao", "consulta", "solicitacao", "entrada", "pregunta"),
    *("message", "mensagem", "problem", "problema", "description", "descricao"),
    *("user", "customer", "usuario", "cliente", "subject", "assunto"),  # a person's name as often as what they say
)
RESPONSE_NAMES = (
    *("response", "answer", "output", "completion", "reply", "resolution", "solution", "agent_reply", "agent_response"),
    *("agent_message", "resposta", "resolucao", "solucao", "saida", "respuesta", "target"),
    *("assistant", "agent", "assistente", "atendente", "agente"),
)
MESSAGES_NAMES = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat", "mensagens")
SYSTEM_NAMES = ("system", "system_prompt", "system_message", "sistema")
TEXT_NAMES = ("text", "texto", "content", "conversation", "dialogue", "chat")
CONVERSATION_NAMES = ("conversation_id", "dialogue_id", "dialog_id", "thread_id", "session_id", "id_conversa")
SHOWN_COLUMNS = 20

DECLARED = {
    **dict.fromkeys(("train", "training", "treino"), "train"),
    "gate": "gate",
    **dict.fromkeys(("tune", "validation", "valid", "val", "dev", "validacao"), "tune"),
    **dict.fromkeys(("test", "testing", "teste"), "test"),
}
"""The split that a source's own word for it means."""


@dataclass(frozen=True)
class Fields:
    """Names of the fields that matter; empty where a source has none."""

    prompt: str = ""
    response: str = ""
    messages: str = ""
    context: str = ""
    """A second part of the prompt: `input` beside `instruction`."""
    system: str = ""
    """What the system says before the prompt."""
    text: str = ""
    """A whole conversation with `### User:` and `### Assistant:` or the like before its turns."""
    guessed: bool = True

    @property
    def note(self) -> str:
        """How the fields were found, for the user; empty when the user named them."""
        pair = f"prompt from {self.prompt!r}, response from {self.response!r}" if self.prompt else ""
        context = f", prompt continued by {self.context!r}" if self.context else ""
        messages = f"conversations from {self.messages!r}" if self.messages else ""
        text = f"marked conversations from {self.text!r}" if self.text else ""
        return "; ".join(filter(None, (messages, text, pair + context))) if self.guessed else ""


def choose_fields(columns: Iterable[str], settings: DataConfig, file: str, marked: Collection[str] = ()) -> Fields:
    """The fields the settings name where the file has them, else those with a usual name.

    `marked` are columns with marked conversations in them; one is taken where nothing else is found, and so is a column
    of messages only where it does not hold such text.
    Raises InputError naming the file, its columns and the remedy when there is no way to tell.
    """
    columns = [column for column in columns if column]
    known: dict[str, str] = {}
    for column in columns:
        known.setdefault(re.sub(r"\W+", "_", fold(column)).strip("_"), column)
    prompt = _pick(settings.prompt_field, columns, known, PROMPT_NAMES)
    others = {name: column for name, column in known.items() if column != prompt}
    response = _pick(settings.response_field, columns, others, RESPONSE_NAMES)
    messages = _pick("", columns, {name: column for name, column in known.items() if column not in marked}, MESSAGES_NAMES)
    system = _pick("", columns, others, SYSTEM_NAMES)
    if prompt and response and prompt != response:
        context = known.get("input", "") if prompt == known.get("instruction") else ""
        named = (prompt, response) == (settings.prompt_field, settings.response_field)
        return Fields(prompt, response, messages, "" if context == response else context, system, guessed=not named)
    if messages:
        return Fields(messages=messages, system=system)
    if marked:
        return Fields(text=next((known[name] for name in TEXT_NAMES if known.get(name) in marked), next(iter(marked))))
    shown = ", ".join(" ".join(column.split()) for column in columns[:SHOWN_COLUMNS]) or "none"
    raise InputError(
        f"{file}: no prompt and response fields among its columns ({shown}): name them with --prompt-field and --response-field"
    )


def _pick(named: str, columns: list[str], known: Mapping[str, str], usual: tuple[str, ...]) -> str:
    if named in columns:
        return named
    return next((known[name] for name in usual if name in known), "")


def row_items(row: Mapping[str, Any], fields: Fields, file: str, line: int, number: int, split: str = "") -> Iterator[Item]:
    """The items of one row: one for a prompt and response, one for each pair of a conversation.

    `number` counts the rows, of which several may stand in a line; `split` is what the file declares, which a field of the
    row goes before.
    """
    used = {fields.prompt, fields.response, fields.messages, fields.context, fields.system, fields.text}
    meta = {key: _scalar(value) for key, value in row.items() if key and key not in used and _is_scalar(value)}
    split = next((DECLARED[fold(meta.pop(key).strip())] for key in list(meta) if _declares(key, meta[key])), split)
    own = next((f"{name}={meta[key]}" for name in CONVERSATION_NAMES for key in meta if fold(key) == name and meta[key]), "")
    item = Item(file, line, split=split, conversation=own or f"{file}#{number}", meta=meta)
    try:
        made = list(_row(row, fields, item))
    except ValueError as error:
        made = [replace(item, prompt=json.dumps(row, ensure_ascii=False, default=str)).reject("malformed", str(error))]
    for one in made:
        rule, reason = ("", "") if one.rule else misplaced(one.prompt, one.response)
        yield one.reject(rule, reason) if rule else one


def _row(row: Mapping[str, Any], fields: Fields, item: Item) -> Iterator[Item]:
    """Raises ValueError for a row that holds something else than text where text belongs."""
    said = _text(row, fields.system)
    system = [Turn("system", said, item.line)] if said.strip() else []
    if fields.messages and row.get(fields.messages) is not None:
        yield from pair_turns([*system, *_turns(row[fields.messages], item.line)], item)
    elif fields.text:
        text = _text(row, fields.text)
        yield from pair_turns(marked_turns(text, item.line), item) if text.strip() else [item]
    else:
        prompt = "\n".join(filter(None, (_text(row, fields.prompt), _text(row, fields.context))))
        history = tuple(Message(turn.role, turn.text) for turn in system)
        yield replace(item, prompt=prompt, response=_text(row, fields.response), history=history)


def _declares(key: str, value: str) -> bool:
    return fold(key) == "split" and fold(value.strip()) in DECLARED


def _is_scalar(value: Any) -> bool:
    return value is not None and not isinstance(value, (list, tuple, dict, set, bytes))


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name) if name else None
    if value is None:
        return ""
    if not _is_scalar(value):
        raise ValueError(f"field {name!r} holds a {type(value).__name__}, not text")
    return _scalar(value)


def _turns(messages: Any, line: int) -> Iterator[Turn]:
    """Turns of OpenAI messages (role, content) or of their from/value form. Raises ValueError for anything else."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("the conversation is not a list of messages")
    roles = []
    for message in messages:
        if not isinstance(message, dict):
            raise ValueError("a message is not an object with role and content")
        name = message.get("role", message.get("from"))
        role = ROLES.get(fold(str(name)), "")
        if not role:
            raise ValueError(f"a message has the role {name!r}: use user, assistant or system")
        roles.append(role)
        yield Turn(role, _content(message.get("content", message.get("value"))), line)
    if set(roles) == {"system"}:
        raise ValueError("the conversation has neither user nor assistant messages")


def _content(content: Any) -> str:
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if content is None:
        return ""
    if not isinstance(content, str):
        raise ValueError("a message's content is not text")
    return content
