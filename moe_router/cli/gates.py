"""gates compare and drift."""

from __future__ import annotations

from pathlib import Path

import click

from moe_router.cli.common import Session, command, register


@click.group(epilog="\b\nExample:\n  moe-router gates compare")
def gates() -> None:
    """The trained gate: compare it with others, and see whether its traffic has changed."""


@command(example="moe-router gates compare --json")
def _compare(session: Session) -> None:
    """Compare the gate with published gates on the same experts.

    Centroid softmax, nearest records, slice classifier, a gate trained end to end, Arrow, best fixed expert, controls, and the
    oracle: perplexity on the test split, share of the oracle, regret and time to choose. The temperature of each is searched on
    the tune split.
    """
    from moe_router.gate.compare import compare_gates

    with session.working() as progress:
        found = compare_gates(session.workspace, progress)
    session.answer(found.to_json(), found.lines())


@command(example="moe-router gates drift asked.txt")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def _drift(session: Session, file: Path) -> None:
    """See whether the questions in FILE still resemble those the gate was fitted for.

    FILE is text, one question a line, or JSON lines with a `text` each.
    """
    from moe_router.gate.drift import drift_of_file

    with session.working():
        found = drift_of_file(session.workspace, file)
    session.answer(found.to_json(), found.lines())


compare = register(_compare, "compare", gates)
drift = register(_drift, "drift", gates)
