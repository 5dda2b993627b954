"""experts list, show, verify, remove."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from moe_router.cli.common import Session, command, register
from moe_router.errors import LibraryError

if TYPE_CHECKING:
    from moe_router.experts.library import Library

LONGEST_LIST = 8
"""Longer lists in a card (losses) are shown by their ends; --json has all."""


@click.group(epilog="\b\nExample:\n  moe-router experts list")
def experts() -> None:
    """The workspace's library: list, show, verify, remove."""


@command(example="moe-router experts list --json")
def _list(session: Session) -> None:
    """The experts of the library, the shared one first."""
    library = _library(session)
    cards = [library.cards[name] for name in library.members]
    session.answer(
        {"path": str(library.path), "base": library.base.model, "digest": library.digest, "experts": cards},
        (
            f"{card['name']:<32} rank {card['rank']:>3}  {card['records']:>7,} records  {card['tokens']:>9,} tokens"
            for card in cards
        ),
    )


@command(example="moe-router experts show returns-refunds")
@click.argument("name")
def _show(session: Session, name: str) -> None:
    """One expert: what it was trained on, and how."""
    card = _card(_library(session), name)
    session.answer(card, _describe(card))


@command(example="moe-router experts verify")
def _verify(session: Session) -> None:
    """Check every expert of the library.

    Files whole and finite, made for this base, and moving its logits. Exit code 1 when a check fails.
    """
    from moe_router.experts.library import verify

    with session.working():
        checks = list(verify(_library(session)))
    good = all(check.ok for check in checks)
    session.answer(
        {"ok": good, "checks": [asdict(check) for check in checks]},
        (f"{'ok ' if check.ok else 'BAD'}  {check.name:<32} {check.detail}" for check in checks),
    )
    if not good:
        bad = next(check.name for check in checks if not check.ok)
        raise LibraryError(f"expert {bad!r} failed its check: remove it or run `moe-router train-experts` again")


@command(example="moe-router experts remove returns-refunds")
@click.argument("name")
def _remove(session: Session, name: str) -> None:
    """Delete one routed expert.

    It leaves the library's index too; train the gate again afterwards.
    """
    library = _library(session).remove(name)
    session.answer({"removed": name, "experts": list(library.names)}, [f"removed {name}; left: {', '.join(library.names)}"])
    session.note("the gate still knows it: run `moe-router train-gate`")


def _library(session: Session) -> Library:
    from moe_router.experts.library import Library

    return Library.load(session.workspace.experts)


def _card(library: Library, name: str) -> Mapping[str, Any]:
    if name not in library.members:
        raise LibraryError(f"no expert {name!r} in {library.path}: there are {', '.join(library.members)}")
    return library.cards[name]


def _describe(card: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in card.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _describe(value, indent + "  ")
        elif isinstance(value, list) and len(value) > LONGEST_LIST:
            yield f"{indent}{key}: {', '.join(map(str, value[:3]))}, … {', '.join(map(str, value[-3:]))} ({len(value)} in all)"
        else:
            yield f"{indent}{key}: {value}"


for _function, _name in ((_list, "list"), (_show, "show"), (_verify, "verify"), (_remove, "remove")):
    register(_function, _name, experts)
