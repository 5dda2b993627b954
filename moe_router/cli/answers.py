"""route and ask: what a finished library is for."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from moe_router.cli.common import Session, command, register

if TYPE_CHECKING:
    from moe_router.inference import Route


@command(example='moe-router route "How do I get a refund?" "Where is my parcel?"')
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
def _route(session: Session, texts: tuple[str, ...]) -> None:
    """Show which experts would answer each TEXT.

    Gate and embedder alone: the base is not loaded.
    """
    from moe_router.inference.routing import route as routes_of

    with session.working():
        routes = routes_of(session.workspace.experts, list(texts))
    pairs = list(zip(texts, routes, strict=True))
    session.answer(
        {"routes": [{"text": text, **asdict(found)} for text, found in pairs]},
        (f"{text}\n  {describe(found)}" for text, found in pairs),
    )


@command("generation", example='moe-router ask "How do I get a refund?"')
@click.argument("text")
def _ask(session: Session, text: str) -> None:
    """Answer TEXT with the experts that the gate picks.

    The answer goes to stdout, the route to stderr; --json has both.
    """
    from moe_router.inference import Router

    with session.working():
        router = Router.load(session.workspace.experts, generation=session.config.generation)
        answer = router.ask(text)
    session.note(f"route: {describe(answer.route)}")
    session.answer(answer.to_json(), [answer.text])


def describe(found: Route) -> str:
    """A route on one line."""
    if found.abstained:
        return f"abstained: {'the shared expert' if found.shared else 'the base'} alone (confidence {found.confidence:.2f})"
    mixture = " · ".join(f"{name} {weight:.2f}" for name, weight in found.weights.items())
    return f"{mixture} (confidence {found.confidence:.2f})"


route = register(_route, "route")
ask = register(_ask, "ask")
