"""Several turns with one memory: what each turn is routed by, and what of the history is read again."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from moe_router.config import GenerationConfig
from moe_router.data.records import Message
from moe_router.errors import ConfigError
from moe_router.inference.router import Answer, Router, Stream
from moe_router.inference.routing import Route

KV = ("recompute", "reuse")


@dataclass
class Conversation:
    """Turns in order, one at a time; not for several threads at once, though each thread may have its own."""

    router: Router
    kv: str = "recompute"
    """When the mixture changes, `recompute` reads the history again with the new one (exact), `reuse` keeps what was read."""
    stickiness: float = 0.0
    """Stay with the last route until another expert leads its first one by more than this in the gate's weights, 0 to 1."""
    generation: GenerationConfig | None = None
    messages: list[Message] = field(default_factory=list, init=False)
    routes: list[Route] = field(default_factory=list, init=False)
    """One per turn."""
    _name: str = field(default_factory=lambda: uuid.uuid4().hex, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kv not in KV or not 0 <= self.stickiness <= 1:
            raise ConfigError(f"kv = {self.kv!r}, stickiness = {self.stickiness}: use 'recompute' or 'reuse', and 0 to 1")

    def ask(self, text: str) -> Answer:
        """Say `text` and wait for the whole answer."""
        return self.stream(text).answer()

    def stream(self, text: str) -> Stream:
        """Say `text`; the turn is remembered once the stream was read to its end, also when it was cancelled.

        Raises InputError when `text` alone is longer than the base can read.
        """
        turn = Message("user", text)
        found = self._route([*self.messages, turn])

        def remember(answer: str) -> None:
            self.messages += [turn, Message("assistant", answer)]
            self.routes.append(found)

        name = self._name if self.kv == "reuse" else ""
        return self.router.stream(self._fitting(turn), self.generation, found, conversation=name, done=remember)

    def _route(self, messages: Sequence[Message]) -> Route:
        found = self.router.route([messages])[0]
        last = self.routes[-1] if self.routes else found
        if not self.stickiness or not last.weights:
            return found
        if found.abstained:
            return last
        shares = self.router.route([messages], mode="soft")[0].weights
        lead = shares[next(iter(found.weights))] - shares.get(next(iter(last.weights)), 0.0)
        return found if lead > self.stickiness else last

    def _fitting(self, turn: Message) -> list[Message]:
        """The history without its oldest turns, as many as must go for the answer to have its room, and the new turn."""
        for start in range(0, len(self.messages), 2):
            kept = [*self.messages[start:], turn]
            if len(self.router.prompt_tokens(kept)) <= self.router.room(self.generation):
                return kept
        return [turn]
