"""How a conversation becomes text for the base, and where an answer ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_router.data.records import Message
from moe_router.errors import ConfigError, InputError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Template:
    """Opening and closing text of each role's turn.

    The prompt ends where the assistant's turn opens, and the response begins with whatever `answer` puts before it, so
    that training and inference cut the text into tokens at the same place.
    """

    name: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str = ""
    """Put before each assistant text, and trained on."""
    stop: tuple[str, ...] = ()
    """An answer ends before any of these."""

    def prompt(self, messages: Sequence[Message]) -> str:
        """The conversation as text, open for the assistant's answer. Raises InputError for a role not in ROLES."""
        turns = []
        for message in messages:
            if message.role not in ROLES:
                raise InputError(f"a message has the role {message.role!r}: use one of {', '.join(ROLES)}")
            opening, closing = getattr(self, message.role)
            lead = self.answer if message.role == "assistant" else ""
            turns.append(f"{opening}{lead}{message.content}{closing}")
        return "".join(turns) + self.assistant[0]

    def response(self, text: str) -> str:
        """The answer as it follows `prompt`."""
        return self.answer + text


PLAIN = Template(
    name="plain",
    system=("", "\n"),
    user=("User: ", "\n"),
    assistant=("Assistant:", "\n"),
    answer=" ",
    stop=("\nUser:",),
)

TEMPLATES = {template.name: template for template in (PLAIN,)}


def template(name: str) -> Template:
    """The template of that name. Raises ConfigError naming those there are."""
    if name not in TEMPLATES:
        raise ConfigError(f"data.template = {name!r}: use one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
