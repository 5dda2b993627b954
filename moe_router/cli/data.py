"""slices list, merge, split, rename, drift; synthesize; what a slice looks like on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_router.cli.common import Session, command, register

if TYPE_CHECKING:
    from moe_router.data.slices import Slices
    from moe_router.data.synthesize import Synthesis

EXAMPLE = 160
"""Characters shown of a dialogue that was rejected."""
LOW_YIELD = 0.5
"""Share of dialogues kept under which a note says what to change."""


@click.group(epilog="\b\nExample:\n  moe-router slices list")
def slices() -> None:
    """The workspace's slices: list, merge, split, rename, drift.

    data/slices.toml holds the same for editing by hand; `moe-router slice` applies it. Experts, gate and report are made
    anew for slices that have changed.
    """


@command(example="moe-router slices list --json")
def _list(session: Session) -> None:
    """Name, size, words and typical prompts of every slice."""
    from moe_router.data.slices import Slices

    answer_slices(session, Slices.load(session.workspace))


@command(example="moe-router slices merge refunds returns --name returns")
@click.argument("names", metavar="NAME NAME...", nargs=-1, required=True)
@click.option("--name", default="", help="What the merged slice is called. [default: the first one's name]")
def _merge(session: Session, names: tuple[str, ...], name: str) -> None:
    """Make one slice of several."""
    from moe_router.data.editing import merge_slices

    answer_slices(session, merge_slices(session.workspace, session.config, names, name))


@command("slice.min_records", "slice.max_ratio", "slice.seed", example="moe-router slices split payroll --into 2")
@click.argument("name")
@click.option("--into", type=int, default=2, show_default=True, help="Number of slices to make of it.")
def _split(session: Session, name: str, into: int) -> None:
    """Cluster one slice's records into several slices."""
    from moe_router.data.editing import split_slice

    with session.working():
        made = split_slice(session.workspace, session.config, name, into)
    answer_slices(session, made)


@command(example="moe-router slices rename cards-refunds refunds")
@click.argument("old")
@click.argument("new")
def _rename(session: Session, old: str, new: str) -> None:
    """Call a slice otherwise."""
    from moe_router.data.editing import rename_slice

    answer_slices(session, rename_slice(session.workspace, session.config, old, new))


@command(example="moe-router slices drift")
def _drift(session: Session) -> None:
    """How far records that were added later are from those that the slices were made of."""
    from moe_router.data.slices import Slices, drift_line

    found = Slices.load(session.workspace)
    drift = found.drift
    moved = dict(zip(found.names, drift.moved, strict=True))
    value = {"new": drift.new, "outside": drift.outside, "spread": drift.spread, "high": drift.high, "moved": moved}
    lines = [drift_line(drift)]
    if drift.new:
        lines += [f"{name}: its centre moved by {distance:.3f} (1 − cosine)" for name, distance in moved.items()]
        lines.append("high: `moe-router slice --anew` makes new slices" if drift.high else "low: the slices still fit")
    session.answer(value, lines)


@command("base", "data.template", "data.seed", example="moe-router synthesize facts.md --base ./StableBeluga-7B --count 500")
@click.argument("facts", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--count", type=int, default=100, show_default=True, help="Dialogues to ask for.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write. [default: data/synthetic.jsonl of the workspace]",
)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="Higher is more varied, and less true.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="Nucleus sampling.")
@click.option("--max-new-tokens", type=int, default=160, show_default=True, help="Longest dialogue in tokens.")
def _synthesize(
    session: Session, facts: Path, count: int, out: Path | None, temperature: float, top_p: float, max_new_tokens: int
) -> None:
    """Have the base write dialogues from a fact sheet.

    FACTS is a text or Markdown file, one fact a line. Dialogues that break a cleaning rule or leave the facts are rejected
    and counted. Give the file written to `prepare` as a source: its records are marked as synthetic, train only, and are
    capped by data.synthetic_share.
    """
    from moe_router.config import GenerationConfig
    from moe_router.data.synthesize import read_facts, synthesize
    from moe_router.experts.base import EMBEDDED, load_base
    from moe_router.inference.writer import BaseWriter

    read_facts(facts)  # before a large base is loaded
    settings = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    path = out or session.workspace.data / "synthetic.jsonl"
    config = session.config
    if config.base.model == EMBEDDED:
        session.note(
            "the embedded base is too small to write dialogues, and next to none will pass: name one of several billion "
            "parameters with --base, and its own --template"
        )
    with session.working() as progress:
        writer = BaseWriter(load_base(config.base), settings, config.data.template)
        made = synthesize(facts, path, writer, count, config.data, config.data.seed, progress)
    for note in _synthesis_notes(made, config.data.synthetic_share):
        session.note(note)
    reasons = " · ".join(f"{number:,} {rule}" for rule, number in made.reasons.items())
    lines = [f"{made.kept:,} of {made.asked:,} dialogues from {made.facts:,} facts in {made.path}: {made.records:,} records"]
    session.answer(vars(made) | {"path": str(made.path)}, [*lines, *([f"rejected: {reasons}"] if reasons else [])])


def _synthesis_notes(made: Synthesis, share: float) -> Iterator[str]:
    if made.example:
        yield f"one that was rejected, {' '.join(made.example.split())[:EXAMPLE]}"
    if made.kept < LOW_YIELD * made.asked:
        yield f"only {made.kept:,} of {made.asked:,} dialogues passed: a larger base or its own --template writes better ones"
    if made.kept:
        yield (
            f"give {made.path} to `prepare` beside real records: at most {share:.0%} of the training records may be synthetic "
            "(--synthetic-share), and no other split holds any"
        )
    yield "synthetic records teach the writer's mistakes and its style: read some before you use them, and prefer real ones"


def answer_slices(session: Session, found: Slices) -> None:
    """Print slices, in either form."""
    for note in found.notes:
        session.note(note)
    rows = zip(found.names, found.sizes, found.words, found.prompts, found.members, strict=True)
    value: dict[str, Any] = {
        "slices": [
            {"name": name, "records": size, "words": list(words), "prompts": list(prompts), "cells": list(cells)}
            for name, size, words, prompts, cells in rows
        ],
        "curve": [vars(tried) for tried in found.curve],
        "largest_to_mean": round(found.ratio, 3),
        "embedder": found.embedder,
        "digest": found.digest,
        "fresh": found.fresh,
    }
    session.answer(value, slice_lines(found))


def slice_lines(found: Slices) -> Iterator[str]:
    """Name, size and typical prompts of every slice, and what each number of slices gained where that was measured."""
    for name, size, words, prompts in zip(found.names, found.sizes, found.words, found.prompts, strict=True):
        yield f"{name}: {size:,} training records ({', '.join(words)})"
        for prompt in prompts:
            yield f"    {' '.join(prompt.split())}"
    for tried in found.curve:
        mark = "  <- chosen" if tried.chosen else ""
        yield f"k = {tried.k}: perplexity {tried.perplexity:.2f}, gain {tried.gain:+.1%} ± {tried.error:.1%}{mark}"


for _function, _name in ((_list, "list"), (_merge, "merge"), (_split, "split"), (_rename, "rename"), (_drift, "drift")):
    register(_function, _name, slices)
synthesize = register(_synthesize, "synthesize")
