"""Tables for the terminal, through rich: readable at 100 columns, and with colours off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_router.report.arms import Arm, Comparison, ExpertRow
from moe_router.report.document import Report
from moe_router.report.words import OUTCOMES, amount, interval, level, p_value, si

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from moe_router.report.against import Against

WIDTH = 100
STYLES = {"better": "green", "worse": "red", "open": "yellow"}


@dataclass(frozen=True)
class SliceRow:
    """One slice, as shown."""

    name: str
    size: int
    """Training records."""
    prompts: tuple[str, ...]
    """Typical ones."""


@dataclass(frozen=True)
class AnswerRow:
    """One question with its answer and route, as shown."""

    question: str
    answer: str
    weights: Mapping[str, float]
    """Experts used; empty where the gate abstained."""
    confidence: float
    expected: str = ""
    """The reference answer, where there is one."""


def lines(*parts: RenderableType, width: int | None = None, console: Console | None = None) -> list[str]:
    """Render to lines for stdout, with colours only where it is a terminal that wants them (NO_COLOR is honoured)."""
    from rich.console import Console

    console = console or Console()
    console.width = width or (min(console.width, 140) if console.is_terminal else WIDTH)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return [line.rstrip() for line in captured.get().splitlines()]


def report_lines(report: Report, width: int | None = None) -> list[str]:
    """The verdict and the tables that lead to it."""
    parts = [arms_table(report.arms), comparison_table(report.comparisons)]
    if report.experts:
        parts.append(experts_table(report.experts))
    return lines(*parts, *_verdict(report), width=width)


def slices_table(rows: Sequence[SliceRow]) -> Table:
    """Name, size and typical prompts of each slice, a line for each prompt."""
    table = _table("Slices", ("slice", "left"), ("records", "right"))
    table.add_column("typical prompts")
    for row in rows:
        for index, prompt in enumerate(row.prompts or ("",)):
            first = index == 0
            table.add_row(_text(row.name if first else ""), f"{row.size:,}" if first else "", _text(prompt, cut=True))
    return table


def experts_table(rows: Sequence[ExpertRow]) -> Table:
    """Perplexity of each slice's test records, before and after."""
    table = _table("Experts on their own slice", ("expert", "left"), ("test tokens", "right"))
    for head in ("base perplexity", "with expert", "change"):
        table.add_column(head, justify="right")
    for row in rows:
        change = f"{(row.after / row.before - 1) * 100:+.0f} %"
        table.add_row(_text(row.name), f"{row.target_tokens:,}", f"{level(row.before)}", f"{level(row.after)}", change)
    return table


def arms_table(arms: Sequence[Arm]) -> Table:
    """Perplexity and cost of each arm."""
    facts = any(arm.key_fact_accuracy is not None for arm in arms)
    table = _table("Arms on the test split", ("arm", "left"), ("perplexity", "right"))
    heads = ("95 %\ninterval", "FLOPs\na token", "active\nFLOPs", "training\nFLOPs", "adapter\nparameters")
    for head in (*heads, *(["right\nfacts"] * facts)):
        table.add_column(head, justify="right", no_wrap=True)
    for arm in arms:
        cells = [
            _text(arm.id),
            level(arm.perplexity),
            "–".join(level(edge) for edge in arm.ci95),
            si(arm.flops_per_token),
            si(arm.active_flops_per_token),
            si(arm.train_flops) if arm.train_flops else "",
            si(arm.adapter_params) if arm.adapter_params else "",
        ]
        share = arm.key_fact_accuracy
        table.add_row(*cells, *([] if not facts else ["" if share is None else f"{share * 100:.0f} %"]))
    return table


def comparison_table(rows: Sequence[Comparison]) -> Table:
    """The mixture against each rival; the outcome stands in words, not in colour alone."""
    arm = rows[0].arm if rows else "mixture"
    table = _table(f"{arm} against", ("rival", "left"), ("perplexity", "right"))
    for head in ("95 % interval", "p"):
        table.add_column(head, justify="right")
    table.add_column(f"{arm} is")
    for row in rows:
        p = p_value(row).removeprefix("p ").removeprefix("= ")
        style = STYLES[row.outcome]
        table.add_row(_text(row.rival), amount(row), interval(row), p, _text(OUTCOMES[row.outcome], style))
    return table


def against_lines(found: Against, width: int | None = None) -> list[str]:
    """Another run's arms beside this one's, and whether they may be compared at all."""
    table = _table(f"Against {found.other}", ("arm", "left"), ("here", "right"))
    for head in ("there", "difference", "95 % interval", "p", "FLOPs"):
        table.add_column(head, justify="right")
    for row in found.changes:
        spread = "" if row.ci95 is None else " to ".join(f"{100 * edge:+.1f} %" for edge in row.ci95)
        sure = "" if row.p is None else f"{row.p:.3f}"
        difference = f"{100 * row.relative:+.1f} %"
        table.add_row(row.arm, level(row.here), level(row.there), difference, spread, sure, f"× {row.flops:.2f}")
    words = [] if found.same_records else ["Other test records: a difference may come from the records, not from the methods."]
    words += [f"Only here: {', '.join(found.only_here)}."] if found.only_here else []
    words += [f"Only there: {', '.join(found.only_there)}."] if found.only_there else []
    return lines(table, *map(_text, words), width=width)


def answers_table(rows: Sequence[AnswerRow]) -> Table:
    """Questions with answer and route."""
    from rich.table import Table

    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(style="dim", justify="right", no_wrap=True)
    table.add_column(ratio=1)
    for row in rows:
        table.add_row("question", _text(row.question, "bold"))
        table.add_row("answer", _text(row.answer))
        if row.expected:
            table.add_row("reference", _text(row.expected))
        table.add_row("route", _text(route_words(row.weights, row.confidence)))
        table.add_row("", "")
    return table


def route_words(weights: Mapping[str, float], confidence: float) -> str:
    """`refunds 0.81 + orders 0.19 (confidence 0.90)`."""
    if not weights:
        return f"abstained: no routed expert (confidence {confidence:.2f})"
    mixture = " + ".join(f"{name} {weight:.2f}" for name, weight in sorted(weights.items(), key=lambda item: -item[1]))
    return f"{mixture} (confidence {confidence:.2f})"


def _verdict(report: Report) -> Iterator[Text]:
    yield _text("")
    yield _text(report.verdict.headline, "bold")
    yield from map(_text, (*report.verdict.remarks, *report.notes))


def _table(title: str, *columns: tuple[str, str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False
    )
    for head, justify in columns:
        table.add_column(head, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def _text(text: str, style: str = "", cut: bool = False) -> Text:
    """Text of any origin: no markup is read in it, and nothing in it can steer a terminal. `cut` keeps it on one line."""
    from rich.text import Text

    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return Text(plain, style=style, no_wrap=cut, overflow="ellipsis" if cut else None)
