"""How a conversation becomes text for the base, and where an answer ends."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from moe_router.data.records import Message
from moe_router.errors import ConfigError, InputError
from moe_router.workspace import digest_json

ROLES = ("system", "user", "assistant")
CHAT = "chat"
"""The template that the base's own tokenizer brings along."""


class Style(Protocol):
    """What every template can do.

    The prompt ends where the assistant's turn opens, and `response` begins with whatever the template puts before an
    answer, so that training and inference cut the text into tokens at the same place.
    """

    @property
    def name(self) -> str: ...

    @property
    def stop(self) -> tuple[str, ...]:
        """An answer ends before any of these."""

    @property
    def digest(self) -> str:
        """Identifies the text that the template makes; a library remembers it."""

    def prompt(self, messages: Sequence[Message]) -> str:
        """The conversation as text, open for the assistant's answer. Raises InputError for a role not in ROLES."""

    def response(self, text: str) -> str:
        """The answer as it follows `prompt`."""


@dataclass(frozen=True)
class Template:
    """A template of fixed texts: what opens and closes each role's turn."""

    name: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str = ""
    """Put before each assistant text, and trained on."""
    stop: tuple[str, ...] = ()
    """An answer ends before any of these."""
    opening: str = ""
    """Put before a conversation that no system message opens."""
    told: str | None = None
    """What opens a user's turn right after a system message, where the two are one; None for the same as ever."""

    @property
    def digest(self) -> str:
        """Identifies the text that the template makes."""
        return digest_json(asdict(self))

    def prompt(self, messages: Sequence[Message]) -> str:
        """The conversation as text, open for the assistant's answer. Raises InputError for a role not in ROLES."""
        _check_roles(messages)
        turns = [] if messages and messages[0].role == "system" else [self.opening]
        last = ""
        for message in messages:
            opening, closing = getattr(self, message.role)
            if message.role == "user" and last == "system" and self.told is not None:
                opening = self.told
            lead = self.answer if message.role == "assistant" else ""
            turns.append(f"{opening}{lead}{message.content}{closing}")
            last = message.role
        return "".join(turns) + self.assistant[0]

    def response(self, text: str) -> str:
        """The answer as it follows `prompt`."""
        return self.answer + text


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer of `transformers`.

    How it writes an answer is found by rendering one: `answer` stands before it, `closing` behind it.
    """

    tokenizer: Any
    answer: str = ""
    closing: str = ""
    systems: bool = True
    """Whether the template takes system messages; if not, they go before the user's."""
    name: str = CHAT

    @classmethod
    def of(cls, tokenizer: Any) -> ChatTemplate:
        """Raises ConfigError for a tokenizer without a template, and for one that does not end a prompt where it answers."""
        if getattr(tokenizer, "chat_template", None) is None:
            known = ", ".join(TEMPLATES)
            raise ConfigError(f"data.template = 'chat': the base's tokenizer has no chat template: use one of {known}")
        made = cls(tokenizer)
        try:
            made.prompt([Message("system", "s"), Message("user", "u")])
        except InputError:
            made = replace(made, systems=False)
        asked, answer = [Message("user", "u")], "\u2042"  # a sign that no template writes
        whole, prompt = made._render([*asked, Message("assistant", answer)], False), made.prompt(asked)
        before, found, after = whole.partition(answer)
        if not found or not before.startswith(prompt):
            raise ConfigError("data.template = 'chat': the base's chat template writes answers elsewhere than it asks for them")
        return replace(made, answer=before[len(prompt) :], closing=after)

    @property
    def stop(self) -> tuple[str, ...]:
        """What closes an answer."""
        closing = self.closing.strip()
        return (closing,) if closing else ()

    @property
    def digest(self) -> str:
        """Identifies the text that the template makes."""
        return digest_json([self.name, self.tokenizer.chat_template, self.tokenizer.bos_token, self.tokenizer.eos_token])

    def prompt(self, messages: Sequence[Message]) -> str:
        """The conversation as text, open for the assistant's answer.

        Raises InputError for a role not in ROLES, and for an order of turns that the template refuses.
        """
        _check_roles(messages)
        return self._render(messages if self.systems else _told(messages), True)

    def response(self, text: str) -> str:
        """The answer as it follows `prompt`, closed unless the end-of-text token closes it."""
        closed = self.closing.rstrip()
        return self.answer + text + ("" if closed.strip() == self.tokenizer.eos_token else closed)

    def _render(self, messages: Sequence[Message], ask: bool) -> str:
        from jinja2 import TemplateError

        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
        except TemplateError as error:
            raise InputError(f"the base's chat template refuses the conversation ({error}): use another template") from error
        return text.removeprefix(self.tokenizer.bos_token) if self._begins else text

    @functools.cached_property
    def _begins(self) -> bool:
        """Whether the tokenizer puts the beginning-of-text token by itself, so that the text must not."""
        return bool(self.tokenizer.bos_token) and self.tokenizer("")["input_ids"] == [self.tokenizer.bos_token_id]


def _check_roles(messages: Sequence[Message]) -> None:
    for message in messages:
        if message.role not in ROLES:
            raise InputError(f"a message has the role {message.role!r}: use one of {', '.join(ROLES)}")


def _told(messages: Sequence[Message]) -> list[Message]:
    """The messages with the system's put before the user's that follow."""
    made: list[Message] = []
    said: list[str] = []
    for message in messages:
        if message.role == "system":
            said.append(message.content)
        elif message.role == "user":
            made.append(Message("user", "\n\n".join([*said, message.content])))
            said = []
        else:
            made.append(message)
    return made


PLAIN = Template(
    name="plain",
    system=("", "\n"),
    user=("User: ", "\n"),
    assistant=("Assistant:", "\n"),
    answer=" ",
    stop=("\nUser:",),
)
STABLEBELUGA = Template(
    name="stablebeluga",
    system=("### System:\n", "\n\n"),
    user=("### User:\n", "\n\n"),
    assistant=("### Assistant:", "\n\n"),
    answer="\n",
    stop=("\n\n### User:", "\n### User:"),
)
LLAMA2 = Template(
    name="llama2",
    system=("[INST] <<SYS>>\n", "\n<</SYS>>\n\n"),
    user=("[INST] ", " [/INST]"),
    assistant=("", " </s><s>"),
    answer=" ",
    stop=(" </s>", "</s>", "[INST]"),
    told="",
)
FALCON = Template(
    name="falcon",
    system=("System: ", "\n"),
    user=("User: ", "\n"),
    assistant=("Falcon:", "\n"),
    answer=" ",
    stop=("\nUser:",),
)
GUANACO = Template(
    name="guanaco",
    system=("", "\n"),
    user=("### Human: ", "\n"),
    assistant=("### Assistant:", "\n"),
    answer=" ",
    stop=("\n### Human:",),
)
ALPACA = Template(
    name="alpaca",
    system=("", "\n\n"),
    user=("### Instruction:\n", "\n\n"),
    assistant=("### Response:", "\n\n"),
    answer="\n",
    stop=("\n\n### Instruction:", "\n### Instruction:"),
    opening=("Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"),
)

TEMPLATES = {made.name: made for made in (PLAIN, STABLEBELUGA, LLAMA2, FALCON, GUANACO, ALPACA)}
"""The templates that need no tokenizer."""


def template(name: str, tokenizer: Any = None) -> Style:
    """The template of that name; `chat` is the tokenizer's own. Raises ConfigError naming those there are."""
    if name == CHAT:
        if tokenizer is None:
            raise ConfigError("data.template = 'chat' belongs to a base: open it with the base's tokenizer")
        return ChatTemplate.of(tokenizer)
    if name not in TEMPLATES:
        raise ConfigError(f"data.template = {name!r}: use one of {', '.join((*TEMPLATES, CHAT))}")
    return TEMPLATES[name]
