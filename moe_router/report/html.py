"""The report as one self-contained page: no script, no network, light and dark by the reader's setting, made to print."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from moe_router.report.analysis import FAIR_RIVAL
from moe_router.report.document import Report
from moe_router.report.registry import MIXTURE
from moe_router.report.tables import Table, small_tables, tables
from moe_router.report.words import interval, level, si, span

USES = {"mixture": "Use the mixture", "dense": "Use a dense adapter", "base": "Use the base", "unknown": "No verdict"}
FIGURES_OF = {
    "Arms": ("perplexity-flops", "training-tokens"),
    "Slices": ("slices", "slice-map"),
    "Routes": ("routes", "confidence"),
    "Choices by slice": ("confusion",),
    "Experts": ("experts-slices",),
}
"""The figures that stand before each table."""


def page(report: Report, figures: Mapping[str, str], answers: Sequence[Mapping[str, Any]] = ()) -> str:
    """The whole page. `figures` are SVG elements by name, `answers` the side by side; text of any origin is escaped."""
    css = resources.files("moe_router.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join([*_opening(report), *_body(report, figures), *_answers(answers), *_closing(report)])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.verdict.headline)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "</main>\n</body>\n</html>\n"
    )


def _opening(report: Report) -> Iterator[str]:
    verdict = report.verdict
    yield "<h1>Mixture of experts against dense adapters</h1>"
    yield f'<section class="verdict {escape(verdict.use)}"><span class="use">{USES.get(verdict.use, "")}</span>'
    yield f'<p class="headline">{escape(verdict.headline)}</p>'
    if verdict.instead:
        yield f'<p class="instead">{marked(verdict.instead)}</p>'
    yield "</section>"
    yield from _tiles(report)
    yield _list((*verdict.sentences, *verdict.remarks), "Why")


def _tiles(report: Report) -> Iterator[str]:
    """The four numbers that the verdict rests on."""
    ours, rival = report.arm(MIXTURE), report.arm(FAIR_RIVAL)
    found = next((row for row in report.comparisons if row.rival == FAIR_RIVAL), None)
    if ours is None or rival is None or found is None:
        return
    ratio = ours.flops_per_token / rival.flops_per_token
    tiles = (
        ("Perplexity, mixture", level(ours.perplexity), f"95 %: {span(ours)}"),
        (f"Perplexity, {FAIR_RIVAL}", level(rival.perplexity), f"95 %: {span(rival)}"),
        ("Difference", f"{100 * found.relative:+.1f} %", f"95 %: {interval(found)}"),
        ("FLOPs per token", f"{ratio:.2f} ×", f"{si(ours.flops_per_token)} against {si(rival.flops_per_token)}"),
    )
    cells = (f"<div><dt>{escape(n)}</dt><dd>{escape(v)}<small>{escape(w)}</small></dd></div>" for n, v, w in tiles)
    yield f'<dl class="tiles">{"".join(cells)}</dl>'


def _body(report: Report, figures: Mapping[str, str]) -> Iterator[str]:
    for part in tables(report):
        yield f"<h2>{escape(part.title)}</h2>"
        yield from (f"<figure>{figures[name]}</figure>" for name in FIGURES_OF.get(part.title, ()) if name in figures)
        if part.note:
            yield f'<p class="note">{escape(part.note)}</p>'
        yield table(part)
        if part.title == "Arms":
            arms = (f"<dt><code>{a.id}</code></dt><dd>{escape(a.kind.explanation)}</dd>" for a in report.arms)
            yield f'<dl class="arms">{"".join(arms)}</dl>'


def _answers(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Every question with its reference, all answers, and the mixture's route."""
    rows = [row for row in rows if row.get("shown", True)]
    if not rows:
        return
    yield "<h2>Answers side by side</h2>"
    yield '<p class="note">Greedy answers to test questions, evenly spaced over the test split, not chosen.</p>'
    for row in rows:
        lines = [("reference", row["reference"], "reference"), *((name, text, "") for name, text in row["answers"].items())]
        route = " + ".join(f"{name} {weight:.2f}" for name, weight in row["route"].items()) or "no routed expert"
        lines.append((f"route of {MIXTURE}", f"{route} (confidence {row['confidence']:.2f})", ""))
        cells = (f'<dt>{escape(head)}</dt><dd class="{kind}">{escape(text)}</dd>' for head, text, kind in lines)
        yield f"<article><h3>{escape(row['question'])}</h3><dl>{''.join(cells)}</dl></article>"


def _closing(report: Report) -> Iterator[str]:
    if report.notes:
        yield _list(report.notes, "Not tested, and limits")
    for part in small_tables(report):
        yield f"<details><summary>{escape(part.title)}</summary>{table(part)}</details>"


def escape(text: str) -> str:
    """Text that cannot act as markup; a number stays on the line of its per cent sign."""
    return html.escape(text).replace(" %", "\u00a0%")


def table(part: Table) -> str:
    """An HTML table; the mixture's row stands out."""
    head = "".join(f'<th scope="col"{_side(part, at)}>{escape(name)}</th>' for at, name in enumerate(part.head))
    rows = []
    for row in part.rows:
        cells = "".join(f"<td{_side(part, at)}>{_cell(part, at, cell)}</td>" for at, cell in enumerate(row))
        chosen = ' class="chosen"' if part.code == (0,) and row[0] == MIXTURE else ""
        rows.append(f"<tr{chosen}>{cells}</tr>")
    body = "".join(rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def marked(text: str) -> str:
    """Escaped text whose `backticks` are code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts))


def _list(lines: Iterable[str], title: str) -> str:
    return f"<h2>{escape(title)}</h2><ul>{''.join(f'<li>{marked(line)}</li>' for line in lines)}</ul>"


def _side(part: Table, column: int) -> str:
    return ' class="n"' if column in part.right else ""


def _cell(part: Table, column: int, text: str) -> str:
    return f"<code>{escape(text)}</code>" if column in part.code else escape(text)
