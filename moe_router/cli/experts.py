"""experts list, show, verify, add, remove, rename, export, import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from math import exp
from pathlib import Path
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
    """The workspace's library: list, show, verify, add, remove, rename, export, import."""


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
    card = _library(session).require(name)
    session.answer(card, _describe(card))


@command(example="moe-router experts verify")
def _verify(session: Session) -> None:
    """Check every expert of the library.

    Files whole and finite, every layer trained, the logits moved, and to where PEFT moves them, and its own slice's tune
    records predicted better than by the base and by the shared expert alone. Exit code 1 when a check fails.
    """
    from moe_router.membership import verify_library

    with session.working():
        checks = list(verify_library(session.workspace))
    good = all(check.ok for check in checks)
    session.answer(
        {"ok": good, "checks": [asdict(check) for check in checks]},
        (f"{'ok ' if check.ok else 'BAD'}  {check.name:<32} {check.check:<8} {check.detail}" for check in checks),
    )
    if not good:
        bad = next(check for check in checks if not check.ok)
        remedy = (
            "train it on more data, or remove it"
            if bad.check == "slice"
            else "remove it or run `moe-router train-experts` again"
        )
        raise LibraryError(f"expert {bad.name!r} failed its check ({bad.check}): {remedy}")


@command("experts", "gate", example="moe-router experts add payroll --steps 200")
@click.argument("name")
def _add(session: Session, name: str) -> None:
    """Train an expert for slice NAME, which has none yet.

    Everything else stays frozen: the base, the shared expert and the other experts' files. The gate learns whose queries are
    the new expert's; `moe-router train-gate` measures it.
    """
    from moe_router.membership import add_expert

    with session.working() as progress:
        library = add_expert(session.workspace, session.config, name, progress)
    session.answer({"added": name, "experts": list(library.names)}, [f"added {name}; now: {', '.join(library.names)}"])


@command("gate", example="moe-router experts remove returns-refunds")
@click.argument("name")
def _remove(session: Session, name: str) -> None:
    """Delete one routed expert.

    Its folder, its place in the library and its queries in the gate; the gate is fitted anew without it.
    """
    from moe_router.experts.library import GATE_CARD
    from moe_router.membership import remove_expert

    with session.working() as progress:
        library = remove_expert(session.workspace, session.config, name, progress)
    session.answer({"removed": name, "experts": list(library.names)}, [f"removed {name}; left: {', '.join(library.names)}"])
    if not (library.path / GATE_CARD).exists():
        session.note("there is no gate now: run `moe-router train-gate`")


@command(example="moe-router experts rename cards-refunds refunds")
@click.argument("old")
@click.argument("new")
def _rename(session: Session, old: str, new: str) -> None:
    """Call an expert and its slice otherwise."""
    from moe_router.membership import rename_expert

    library = rename_expert(session.workspace, session.config, old, new)
    session.answer({"renamed": old, "experts": list(library.names)}, [f"{old} is now {new}"])


@command(example="moe-router experts export returns=0.7 shipping=0.3 --to adapter")
@click.argument("names", metavar="NAME[=WEIGHT]...", nargs=-1, required=True)
@click.option("--to", "folder", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["adapter", "merged", "expert"]),
    default="adapter",
    show_default=True,
    help="`adapter`: one PEFT adapter, shared expert included; `merged`: base and all in one model; "
    "`expert`: the folder as it lies in the library.",
)
def _export(session: Session, names: tuple[str, ...], folder: Path, form: str) -> None:
    """Write an expert, or a mixture of several, for other engines.

    Without a weight an expert counts 1. An adapter loads in PEFT over the same base; a merged model needs transformers alone.
    """
    from moe_router.experts.export import copy_expert, export_adapter, export_merged

    library, weights = _library(session), dict(map(_weighted, names))
    with session.working():
        if form == "adapter":
            export_adapter(library, weights, folder)
        elif form == "merged":
            from moe_router.experts.base import load_base

            export_merged(library, weights, folder, load_base(library.base))
        elif len(weights) == 1:
            copy_expert(library, next(iter(weights)), folder)
        else:
            raise click.UsageError("--as expert takes one NAME: a mixture is an adapter")
    session.answer({"path": str(folder), "form": form, "weights": weights}, [f"wrote {folder}"])


@command(example="moe-router experts import ../other/adapter --name legal")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What the expert is called here.")
def _import(session: Session, folder: Path, name: str) -> None:
    """Take a PEFT adapter in as an expert.

    It must be LoRA on the same base and the same layers. The gate does not know it yet: give it a slice of that name and run
    `moe-router train-gate`.
    """
    from moe_router.membership import import_expert

    with session.working():
        library = import_expert(session.workspace, folder, name)
    session.answer({"imported": name, "experts": list(library.names)}, [f"imported {name}; now: {', '.join(library.names)}"])
    session.note("the gate does not know it: run `moe-router train-gate`")


def _library(session: Session) -> Library:
    from moe_router.experts.library import Library

    return Library.load(session.workspace.experts)


def _weighted(text: str) -> tuple[str, float]:
    name, _, weight = text.partition("=")
    try:
        return name, float(weight) if weight else 1.0
    except ValueError as error:
        raise click.UsageError(f"{text!r}: a weight is a number, as in {name}=0.5") from error


def _describe(card: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in card.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _describe(value, indent + "  ")
        elif key == "evaluations" and value:
            yield f"{indent}{key}: nats per response token and perplexity on its slice's tune records"
            for step, nats in value:
                yield f"{indent}  step {step:>6,}  {nats:.4f}  {exp(nats):.3f}{'  kept' if step == card['best_step'] else ''}"
        elif isinstance(value, list) and len(value) > LONGEST_LIST:
            yield f"{indent}{key}: {', '.join(map(str, value[:3]))}, … {', '.join(map(str, value[-3:]))} ({len(value)} in all)"
        else:
            yield f"{indent}{key}: {value}"


for _function, _name in (
    (_list, "list"),
    (_show, "show"),
    (_verify, "verify"),
    (_add, "add"),
    (_remove, "remove"),
    (_rename, "rename"),
    (_export, "export"),
    (_import, "import"),
):
    register(_function, _name, experts)
