"""The report as one Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from moe_router.report.document import Report
from moe_router.report.figures import FIGURES, Figure
from moe_router.report.tables import Table, small_tables, tables


def markdown(report: Report) -> str:
    """Verdict, figures, tables, limits; the pictures lie beside the page."""
    return "\n".join([*_opening(report), *_tables(report), *_closing(report)]).rstrip("\n") + "\n"


def _opening(report: Report) -> Iterator[str]:
    verdict = report.verdict
    yield from ("# Mixture against dense adapters", "", f"**{verdict.headline}**", "")
    if verdict.instead:
        yield from (verdict.instead, "")
    yield from (f"- {line}" for line in (*verdict.sentences, *verdict.remarks))
    for figure in FIGURES:
        if figure.has(report):
            yield from ("", _picture(figure, report))


def _picture(figure: Figure, report: Report) -> str:
    words = figure.alt(report).replace("[", "(").replace("]", ")")
    return f"![{words}]({figure.name}.png)"


def _tables(report: Report) -> Iterator[str]:
    for index, table in enumerate(tables(report)):
        yield from ("", f"## {table.title}", "", table.note, "", *rows_of(table))
        if index == 0:
            yield from ("", *(f"- `{arm.id}`: {arm.kind.explanation}" for arm in report.arms))


def _closing(report: Report) -> Iterator[str]:
    if report.notes:
        yield from ("", "## Not tested, and limits", "", *(f"- {note}" for note in report.notes))
    for table in small_tables(report):
        yield from ("", f"## {table.title}", "", *rows_of(table))


def rows_of(table: Table) -> list[str]:
    """A Markdown table; columns of numbers are aligned right."""
    rule = ["---:" if column in table.right else "---" for column in range(len(table.head))]
    rows = ([f"`{cell}`" if at in table.code else cell for at, cell in enumerate(row)] for row in table.rows)
    return [_line(table.head), _line(rule), *map(_line, rows)]


def _line(cells: Sequence[str] | Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
