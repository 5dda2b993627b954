"""Figures by slice and of the gate: where the mixture wins and loses, which expert knows what, how it is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moe_router.report.arms import Routing, SliceRow
from moe_router.report.style import (
    BLUE,
    FAINT,
    GREEN,
    HEAT,
    INK,
    ORANGE,
    PALE,
    PAPER,
    RULE,
    TYPE,
    new_figure,
    plain,
    title,
)
from moe_router.report.words import level, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.6
ROW = 0.34
"""Inches of height that a row of bars takes."""
STEPS = (0.30, 0.10, 0.03, 1e-9)
"""Perplexity above the slice's best, as a share, at which the heat map's colour changes; the best itself is strongest."""
MOST_LABELLED = 12
"""Experts up to which every cell of a heat map has its number."""
SHARES = (0.02, 0.2, 0.5, 0.8)
"""Share of a row's queries from which a cell of the confusion takes the next colour."""


def draw_slices(rows: Sequence[SliceRow]) -> Figure:
    """Bars of the mixture's relative difference to its rival on every slice, with intervals; left is better."""
    shown = sorted((row for row in rows if row.against), key=lambda row: row.against.relative)
    figure = new_figure(WIDTH, 1.5 + ROW * len(shown))
    rival = shown[0].against.rival
    title(figure, "Where the mixture wins and loses", f"Perplexity against {rival}, slice by slice, with 95 % intervals.")
    axis = _axis(figure, left=0.24, right=0.8)
    colours = {"better": BLUE, "worse": ORANGE, "open": PALE}
    for at, row in enumerate(shown):
        found = row.against
        low, high = (100 * edge for edge in found.ci95)
        middle = 100 * found.relative
        axis.barh(at, middle, height=0.62, color=colours[found.outcome], edgecolor=_edge(colours[found.outcome]), zorder=2)
        axis.errorbar(
            middle,
            at,
            xerr=[[middle - low], [high - middle]],
            fmt="none",
            color=INK,
            ecolor=INK,
            elinewidth=1,
            capsize=2.5,
            zorder=3,
        )
        levels = " : ".join(level(row.perplexity[arm]) for arm in (found.arm, rival))
        axis.annotate(levels, (1.03, at), xycoords=("axes fraction", "data"), fontsize=9, color=FAINT, va="center")
    axis.axvline(0, color=INK, linewidth=0.9, zorder=4)
    _names(axis, [row.name for row in shown])
    _percent_axis(axis)
    axis.set_xlabel("mixture better   ←   difference in perplexity   →   mixture worse", fontsize=TYPE, color=FAINT)
    axis.text(1.03, 1.0, f"{shown[0].against.arm} : {rival}", transform=axis.transAxes, fontsize=8, color=FAINT, va="bottom")
    return figure


def draw_heat(found: Routing) -> Figure:
    """Every expert alone on every slice: a strong diagonal means that experts know what their slice taught them."""
    count = len(found.experts)
    side = min(0.72, 6.2 / count)
    figure = new_figure(WIDTH, 1.9 + 0.55 * side * count + 0.6)
    title(figure, "Which expert knows which slice", "Perplexity of each expert (column) above the best one's on a slice (row).")
    axis = _axis(figure, left=0.24, right=0.97, bottom=1.1)
    for row, levels in enumerate(found.perplexity):
        best = min(levels)
        for column, value in enumerate(levels):
            words = level(value) if value == best else f"+{100 * (value / best - 1):.0f} %" if best else ""
            _cell(axis, row, column, _step(value / best - 1) if best else 0, words if count <= MOST_LABELLED else "")
    _crossing(axis, found.experts)
    return figure


def draw_confusion(found: Routing) -> Figure:
    """First choices by the query's own slice and by the expert really best: shares of each row."""
    count = len(found.experts)
    figure = new_figure(WIDTH, 3.0 + min(0.34, 4.5 / count) * count)
    reading = f"Per cent of each row's queries, by the expert chosen first; for {percent(found.hits)} of all it was the best."
    title(figure, "Where the gate sends queries", reading)
    axes = figure.subplots(1, 2, sharey=True)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.22, right=0.985, top=1 - 1.05 / height, bottom=1.25 / height, wspace=0.06)
    panels = (("row: the query's own slice", found.chosen_by_slice), ("row: the expert really best", found.chosen_by_best))
    for axis, (words, rows) in zip(axes, panels, strict=True):
        for row, queries in enumerate(rows):
            for column, value in enumerate(queries):
                share = value / max(1, sum(queries))
                shown = f"{100 * share:.0f}" if value and count <= MOST_LABELLED else ""
                _cell(axis, row, column, sum(share >= limit for limit in SHARES), shown)
        plain(axis)
        axis.set_title(words, fontsize=TYPE, color=INK, loc="left")
        _crossing(axis, found.experts, most=22)
    return figure


def draw_routes(found: Routing) -> Figure:
    """Use of every expert beside how often it really was best, and the even share."""
    order = sorted(range(len(found.experts)), key=lambda i: found.weight[i])
    figure = new_figure(WIDTH, 1.7 + 0.46 * len(order))
    reading = f"Shares of the test queries; the line is even use. {100 * found.balance:.0f} % of the experts in even use."
    title(figure, "How the load is spread", reading)
    axis = _axis(figure, left=0.24, right=0.97, top=0.95)
    parts = (("routing weight", found.weight, BLUE), ("really best", found.best, PALE))
    for offset, (name, shares, colour) in zip((0.2, -0.2), parts, strict=True):
        bars = [100 * shares[i] for i in order]
        axis.barh([at + offset for at in range(len(order))], bars, 0.36, color=colour, edgecolor=_edge(colour), label=name)
    axis.axvline(100 / len(order), color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=4)
    _names(axis, [found.experts[i] for i in order])
    _percent_axis(axis, signed=False)
    _legend(figure, axis)
    return figure


def draw_confidence(found: Routing) -> Figure:
    """Left, whether confidence means what it says; right, perplexity on the most confident share of the queries."""
    figure = new_figure(WIDTH, 4.3)
    title(
        figure,
        "Whether the gate knows what it knows",
        "Left: on the diagonal, confidence is honest. Right: the curve should rise.",
    )
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.085, right=0.975, top=0.8, bottom=0.14, wspace=0.24)
    largest = max(queries for *_, queries in found.calibration)
    left.plot([0, 1], [0, 1], color=RULE, linewidth=1, linestyle=(0, (4, 3)))
    for confidence, share, queries in found.calibration:
        left.scatter(confidence, share, s=30 + 220 * queries / largest, color=BLUE, edgecolor=PAPER, zorder=3)
    left.set(xlim=(0, 1.03), ylim=(-0.04, 1.06))
    left.set_xlabel("confidence of the gate", fontsize=TYPE, color=FAINT)
    left.set_title("share of queries whose first expert was best", fontsize=TYPE, color=INK, loc="left")
    left.text(1.0, 0.02, f"calibration error {found.calibration_error:.3f}", fontsize=9, color=FAINT, ha="right")
    coverage, risk = zip(*found.risk, strict=True)
    right.plot([100 * share for share in coverage], risk, color=GREEN, linewidth=2, marker="o", markersize=3.5)
    right.set_xlim(0, 103)
    right.set_xlabel("most confident share of the queries, %", fontsize=TYPE, color=FAINT)
    right.set_title("perplexity of the mixture on them", fontsize=TYPE, color=INK, loc="left")
    for axis in (left, right):
        plain(axis)
    return figure


def _edge(colour: str) -> str:
    """Pale bars get a line around them, so that they stand out from the page."""
    return FAINT if colour == PALE else colour


def _step(above: float) -> int:
    return sum(above < limit for limit in STEPS)


def _axis(figure: Figure, left: float, right: float, top: float = 0.75, bottom: float = 0.62) -> Axes:
    """One axis; `top` and `bottom` are margins in inches, so that figures of any height look alike."""
    height = figure.get_figheight()
    axis = figure.subplots()
    figure.subplots_adjust(left=left, right=right, top=1 - top / height, bottom=bottom / height)
    plain(axis, "x")
    return axis


def _cell(axis: Axes, row: int, column: int, step: int, words: str) -> None:
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((column, row), 1, 1, facecolor=HEAT[step], edgecolor=PAPER, linewidth=1.5))
    if words:
        ink = PAPER if step >= 3 else INK
        axis.text(column + 0.5, row + 0.5, words, fontsize=8.5, color=ink, ha="center", va="center")


def _crossing(axis: Axes, names: Sequence[str], most: int = 26) -> None:
    """The same names along both sides of a square of cells, cut to `most` characters."""
    places, shown = [at + 0.5 for at in range(len(names))], [_short(name, most) for name in names]
    axis.set(xlim=(0, len(names)), ylim=(len(names), 0))
    axis.set_yticks(places, shown)
    axis.set_xticks(places, shown, rotation=30, ha="right")
    _bare(axis)


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _names(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), [_short(name) for name in names])
    axis.tick_params(axis="y", labelcolor=INK)
    axis.set_ylim(-0.6, len(names) - 0.4)


def _percent_axis(axis: Axes, signed: bool = True) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:{'+' if signed and value else ''}g} %"))


def _bare(axis: Axes) -> None:
    axis.grid(False)
    axis.tick_params(labelcolor=INK)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _legend(figure: Figure, axis: Axes) -> None:
    place = (0.019, 1 - 0.58 / figure.get_figheight())
    figure.legend(
        *axis.get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=place,
        ncols=2,
        frameon=False,
        fontsize=TYPE,
        labelcolor=INK,
        handlelength=1,
        handleheight=0.8,
    )
