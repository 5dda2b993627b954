"""Two figures of where the difference lies: among the queries, and along the training tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_router.report.arms import CurvePoint, SliceMap
from moe_router.report.plot import LOOKS
from moe_router.report.registry import ARMS
from moe_router.report.style import BLUE, FAINT, INK, ORANGE, PAPER, RULE, TYPE, new_figure, plain, title
from moe_router.report.words import level, percent, si

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHORT = 24
"""Characters of a slice's name that fit beside its points."""
PADDING = 2
"""Pixels around a name that stay free."""
TRIES = 40


def draw_curve(points: Sequence[CurvePoint]) -> Figure:
    """Perplexity against training tokens, both on a logarithmic scale; each point a training of its own."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    figure = new_figure(8.6, 4.2)
    title(figure, "Perplexity against training tokens", "Every point was trained from start to end; bars are 95 % intervals.")
    axis = figure.subplots()
    figure.subplots_adjust(left=0.085, right=0.76, top=0.8, bottom=0.14)
    plain(axis)
    for arm in dict.fromkeys(point.arm for point in points):
        own = sorted((point for point in points if point.arm == arm), key=lambda point: point.trained_tokens)
        look, at, levels = LOOKS[ARMS[arm].group], [p.trained_tokens for p in own], [p.perplexity for p in own]
        spans = [[p.perplexity - p.ci95[0] for p in own], [p.ci95[1] - p.perplexity for p in own]]
        axis.errorbar(at, levels, yerr=spans, color=look.colour, marker=look.marker, markersize=7, linewidth=1.8, capsize=2.5)
        words = f"{ARMS[arm].label}  {level(levels[-1])}"
        axis.annotate(
            words, (at[-1], levels[-1]), (12, 0), textcoords="offset points", color=look.colour, fontsize=TYPE, va="center"
        )
    axis.set(xscale="log", yscale="log")
    axis.xaxis.set_major_locator(FixedLocator(sorted({point.trained_tokens for point in points})))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: si(value)))
    low, high = min(point.ci95[0] for point in points), max(point.ci95[1] for point in points)
    axis.yaxis.set_major_locator(FixedLocator([t for t in MaxNLocator(6).tick_values(low, high) if t > 0]))
    axis.set_ylim(low * 0.99, high * 1.01)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for part in (axis.xaxis, axis.yaxis):
        part.set_minor_locator(NullLocator())
    axis.set_xlabel("training tokens of the routed experts together, and of the dense adapter", fontsize=TYPE, color=FAINT)
    _apart(axis)
    return figure


def draw_map(found: SliceMap) -> Figure:
    """Test queries by what they are about: triangles up where the mixture predicts better, down where its rival does."""
    from matplotlib.lines import Line2D

    figure = new_figure(8.6, 6.2)
    reading = f"Test queries near each other ask alike; the plane shows {percent(found.share)} of how the slices differ."
    title(figure, "Map of the slices", reading)
    axis = figure.subplots()
    figure.subplots_adjust(left=0.03, right=0.97, top=0.85, bottom=0.03)
    x, y, lead, slices = (np.array(values) for values in (found.x, found.y, found.lead, found.slice))
    for ahead, colour, marker in ((lead >= 0, BLUE, "^"), (lead < 0, ORANGE, "v")):
        axis.scatter(x[ahead], y[ahead], s=26, color=colour, marker=marker, edgecolor=PAPER, linewidth=0.5, zorder=2)
    for index in np.unique(slices):
        own = slices == index
        name = found.slices[index]
        name = name if len(name) <= SHORT else f"{name[: SHORT - 1]}…"
        _name(axis, float(np.median(x[own])), float(np.median(y[own])), name)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.margins(0.07)
    _apart(axis)
    for spine in axis.spines.values():
        spine.set_color(RULE)
        spine.set_linewidth(0.6)
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=6.5, label=f"{words} ({percent(share)})")
        for colour, marker, words, share in (
            (BLUE, "^", "mixture predicts the answer better", float((lead >= 0).mean())),
            (ORANGE, "v", "dense adapter does", float((lead < 0).mean())),
        )
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.019, 0.91),
        ncols=2,
        frameon=False,
        fontsize=TYPE,
        labelcolor="linecolor",
        handletextpad=0.1,
    )
    return figure


def _name(axis: Axes, x: float, y: float, name: str) -> None:
    box = {"boxstyle": "round,pad=0.25", "facecolor": PAPER, "edgecolor": RULE, "linewidth": 0.6, "alpha": 0.9}
    axis.annotate(
        name,
        (x, y),
        (0, 0),
        textcoords="offset points",
        fontsize=TYPE,
        fontweight="bold",
        color=INK,
        ha="center",
        va="center",
        bbox=box,
        zorder=4,
    )


def _apart(axis: Axes) -> None:
    """Move names up and down until none covers another; each has an offset in points from its place."""
    axis.figure.draw_without_rendering()
    points = 72 / axis.figure.dpi
    for _ in range(TRIES):
        moved = False
        names = sorted(axis.texts, key=lambda text: text.get_window_extent().y0)
        for at, below in enumerate(names):
            for above in names[at + 1 :]:
                one, other = (text.get_window_extent().padded(PADDING) for text in (below, above))
                if one.overlaps(other):
                    shift = (one.y1 - other.y0) * points / 2 + 0.5
                    for text, way in ((below, -shift), (above, shift)):
                        right, up = text.get_position()
                        text.set_position((right, up + way))
                    moved = True
        if not moved:
            return
