"""route, ask and chat: what a finished library is for."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from moe_router.cli.common import Session, command, register
from moe_router.progress import Silent

if TYPE_CHECKING:
    from moe_router.inference import Answer, Conversation, Route, Router

PROMPT = "> "
FORGET = "/new"


def choice_options(function: Callable[..., None]) -> Callable[..., None]:
    """What a caller may ask of the gate."""
    for option in (
        click.option("--max-experts", type=click.IntRange(0), help="Most experts of a query (0: as many as the mode keeps)."),
        click.option("--mode", metavar="MODE", help="top1, top2, another number, or soft. [default: the gate's own]"),
        click.option("--allow", metavar="EXPERT", multiple=True, help="Use this expert, and others so named, only."),
    ):
        function = option(function)
    return function


def chosen(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `choice_options` as the router takes them."""
    return {"allowed": options["allow"] or None, "mode": options["mode"], "max_experts": options["max_experts"]}


@command(example='moe-router route "How do I get a refund?" "Where is my parcel?"')
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
@choice_options
@click.option("--explain", is_flag=True, help="Show every weight, the abstain threshold, and the nearest training records.")
def _route(session: Session, texts: tuple[str, ...], explain: bool, **choice: Any) -> None:
    """Show which experts would answer each TEXT.

    Gate and embedder alone: the base is loaded only where the gate sees its hidden states (gate.features).
    """
    from moe_router.inference.routing import explained_routes

    with session.working():
        found = explained_routes(session.workspace, list(texts), explain, **chosen(choice))
    session.answer(
        {"routes": [{"text": t, **asdict(r), **({"explanation": asdict(why)} if why else {})} for t, r, why in found]},
        ("\n  ".join([text, describe(route), *(why.lines() if why else [])]) for text, route, why in found),
    )


@command("generation", example='moe-router ask "How do I get a refund?"')
@click.argument("text")
@choice_options
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr how long each stage took, from imports to the last token.")
def _ask(session: Session, text: str, verbose: bool, **choice: Any) -> None:
    """Answer TEXT with the experts that the gate picks.

    The answer goes to stdout, the route to stderr; --json has both.
    """
    watch = Stopwatch()
    with session.working():
        router = _load(session, watch)
        watch.stage("answer")
        answer = router.ask(text, **chosen(choice))
        watch.stage("")
    session.note(f"route: {describe(answer.route)}")
    if verbose:
        session.note(f"times: {watch.line()}, first token after {answer.usage.first_seconds:.3f} s")
    session.answer(answer.to_json(), [answer.text])


@command("generation", example="moe-router chat --stickiness 0.2")
@click.option(
    "--kv",
    type=click.Choice(["recompute", "reuse"]),
    default="recompute",
    show_default=True,
    help="When the route changes: read the history again with the new experts (exact), or keep what was read (quicker).",
)
@click.option(
    "--stickiness",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Stay with the last route until another expert leads by more than this.",
)
def _chat(session: Session, kv: str, stickiness: float) -> None:
    """Talk with the library, line by line.

    The gate decides for every turn. Answers go to stdout as they grow, routes to stderr. /new forgets the history,
    Ctrl-C cuts an answer short, Ctrl-D ends. Lines may be piped in.
    """
    with session.working():
        router = _load(session, Silent())
    talk = router.conversation(kv=kv, stickiness=stickiness)
    turns = []
    for text in _lines(session):
        if text == FORGET:
            talk = router.conversation(kv=kv, stickiness=stickiness)
        elif text:
            turns.append({"prompt": text, **_turn(session, talk, text).to_json()})
    session.answer({"turns": turns}, [])


def _load(session: Session, progress: Stopwatch | Silent) -> Router:
    progress.stage("imports")
    from moe_router.inference import Router

    return Router.load(session.workspace.experts, generation=session.config.generation, progress=progress)


def _lines(session: Session) -> Iterator[str]:
    """The user's lines: with a prompt and line editing on a terminal, else as they come."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    if importlib.util.find_spec("readline"):
        importlib.import_module("readline")
    session.note(f"{FORGET} forgets the history, Ctrl-C cuts an answer short, Ctrl-D ends")
    while True:
        try:
            yield input(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return


def _turn(session: Session, talk: Conversation, text: str) -> Answer:
    """One answer, shown as it grows unless --json keeps stdout for the document."""
    stream = talk.stream(text)
    session.note(f"route: {describe(stream.route)}")
    try:
        for piece in stream:
            if not session.as_json:
                click.echo(piece, nl=False)
    except KeyboardInterrupt:
        stream.cancel()
    if not session.as_json:
        click.echo()
    return stream.answer()


class Stopwatch(Silent):
    """How long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._title, self._began = "", 0.0

    def stage(self, title: str, total: float | None = None) -> None:
        now = time.perf_counter()
        if self._title:
            self.seconds[self._title] = now - self._began
        self._title, self._began = title, now

    def line(self) -> str:
        """All stages on one line."""
        return " · ".join(f"{title} {seconds:.2f} s" for title, seconds in self.seconds.items())


def describe(found: Route) -> str:
    """A route on one line."""
    if found.message:
        return f"abstained: says so (confidence {found.confidence:.2f})"
    if found.abstained:
        return f"abstained: {'the shared expert' if found.shared else 'the base'} alone (confidence {found.confidence:.2f})"
    mixture = " · ".join(f"{name} {weight:.2f}" for name, weight in found.weights.items())
    return f"{mixture} (confidence {found.confidence:.2f})"


route = register(_route, "route")
ask = register(_ask, "ask")
chat = register(_chat, "chat")
