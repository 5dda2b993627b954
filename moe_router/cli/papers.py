"""card, and sheets for people to rate: what is written from a finished report."""

from __future__ import annotations

from pathlib import Path

import click

from moe_router.cli.common import Session, command, register


@command(example="moe-router card --name acme-support --license cc-by-4.0")
@click.option("--name", default="", help="Of the model. [default: the workspace's folder]")
@click.option("--license", "terms", default="other", show_default=True, help="As the Hugging Face hub names licences.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="[default: experts/README.md]")
def _card(session: Session, name: str, terms: str, output: Path | None) -> None:
    """Write the library's model card.

    In the Hugging Face hub's form, with the numbers of the last report. It holds no text of your data but the slices' names.
    """
    from moe_router.report.card import write_card

    path = write_card(session.workspace, name, terms, output)
    session.answer({"path": str(path)}, [f"wrote {path}"])


@click.group(epilog="\b\nExample:\n  moe-router blind sheet")
def blind() -> None:
    """Answers of two arms for people to rate without knowing whose they are."""


@command(example="moe-router blind sheet --arms gate_top2,dense_active --questions 40")
@click.option("--arms", default="gate_top2,dense_active", show_default=True, help="Two arms that answered in the last report.")
@click.option("--questions", type=click.IntRange(min=1), default=40, show_default=True, help="At most this many.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the questions and the sides.")
@click.option("--references", is_flag=True, help="Let raters see the answer in the data too.")
def _sheet(session: Session, arms: str, questions: int, seed: int, references: bool) -> None:
    """Write the sheet for the raters, and its key.

    reports/blind/sheet.html is for raters in a browser, sheet.csv for a spreadsheet; key.json says which side is which arm.
    """
    from moe_router.report.blind import Sheet
    from moe_router.report.render import ANSWERS
    from moe_router.workspace import read_json

    names = tuple(name.strip() for name in arms.split(","))
    if len(names) != 2:
        raise click.BadParameter("give two arms, such as gate_top2,dense_active", param_hint="--arms")
    place = session.workspace
    sheet = Sheet.of(read_json(place.require(place.reports / ANSWERS, "report")), names, questions, seed, references)
    paths = sheet.save(place.reports / "blind")
    value = {"paths": [str(path) for path in paths], "pairs": len(sheet.pairs), "equal": sheet.equal}
    told = f"{len(sheet.pairs)} questions; {sheet.equal} more were left out, as both gave the same answer"
    session.answer(value, [told, *(f"wrote {path}" for path in paths)])


@command(example="moe-router blind rate ana.csv rui.csv")
@click.argument("sheets", metavar="SHEET...", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False), help="[default: reports/blind/key.json]")
def _rate(session: Session, sheets: tuple[Path, ...], key: Path | None) -> None:
    """What filled sheets come to, one for each rater."""
    from moe_router.report.blind import rate

    place = session.workspace
    found = rate(sheets, key or place.require(place.reports / "blind" / "key.json", "blind sheet"))
    session.answer(found.to_json(), found.lines())


card = register(_card, "card")
register(_sheet, "sheet", blind)
register(_rate, "rate", blind)
