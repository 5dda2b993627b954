"""Perplexity against FLOPs per token: every arm a labelled point with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_router.report.arms import Arm
from moe_router.report.labels import Box, Mark, place
from moe_router.report.style import BLUE, FAINT, GREEN, GREY, ORANGE, PAPER, PURPLE, RULE, TYPE, new_figure, plain, title
from moe_router.report.words import level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Look:
    """How arms of one group are drawn; shapes tell the groups apart too."""

    name: str
    colour: str
    marker: str
    filled: bool = True


LOOKS = {
    "mixture": Look("trained gate", BLUE, "o"),
    "dense": Look("dense adapter", ORANGE, "s"),
    "choice": Look("other ways to choose experts", GREEN, "^"),
    "control": Look("control", PURPLE, "v"),
    "base": Look("base", GREY, "X"),
    "bound": Look("bound", GREY, "D", filled=False),
}
GAP = 0.25
"""The perplexity axis is broken where a gap between intervals is more than this share of the logarithmic range below it."""
OUTLIERS = 2
"""At most this many arms lie above the break."""


def draw(arms: Sequence[Arm]) -> Figure:
    """The figure. Arms far above the others go to a strip of their own, above a break in the axis."""
    figure = new_figure(8.6, 5.8)
    parts = [part for part in split(arms) if part]
    heights = [1, 3.8][-len(parts) :]
    axes = figure.subplots(len(parts), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    figure.subplots_adjust(left=0.08, right=0.975, top=0.83, bottom=0.11, hspace=0.07)
    for axis, part in zip(axes, parts, strict=True):
        _points(axis, part)
        _scale_perplexity(axis, part)
        plain(axis)
    _scale_flops(axes[-1], arms)
    if len(parts) > 1:
        _break(axes)
    _words(figure, arms)
    figure.draw_without_rendering()
    for axis, part in zip(axes, parts, strict=True):
        _label(axis, part)
    return figure


def split(arms: Sequence[Arm]) -> tuple[list[Arm], list[Arm]]:
    """Arms above and below a break in the perplexity axis, as many above as help; none where a break would not."""
    order = sorted(arms, key=lambda arm: -arm.perplexity)
    for above in range(min(OUTLIERS, len(order) - OUTLIERS), 0, -1):
        far, near, rest = order[:above], order[above:], order[above - 1 :]
        span = math.log(max(arm.ci95[1] for arm in rest) / min(arm.ci95[0] for arm in rest))
        if math.log(min(arm.ci95[0] for arm in far) / max(arm.ci95[1] for arm in near)) > GAP * span:
            return far, near
    return [], order


def _points(axis: Axes, arms: Sequence[Arm]) -> None:
    for arm in arms:
        look = LOOKS[arm.kind.group]
        low, high = arm.ci95
        axis.errorbar(
            arm.flops_per_token,
            arm.perplexity,
            yerr=[[max(0, arm.perplexity - low)], [max(0, high - arm.perplexity)]],
            fmt=look.marker,
            color=look.colour,
            markersize=8,
            markerfacecolor=look.colour if look.filled else PAPER,
            markeredgecolor=PAPER if look.filled else look.colour,
            markeredgewidth=0.8 if look.filled else 1.5,
            ecolor=look.colour,
            elinewidth=1.1,
            capsize=2.5,
            zorder=4 if arm.kind.group == "mixture" else 3,
        )


def _scale_perplexity(axis: Axes, arms: Sequence[Arm]) -> None:
    """Logarithmic: equal distances are equal ratios. Ticks stay plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = min(arm.ci95[0] for arm in arms), max(arm.ci95[1] for arm in arms)
    room = max((high / low) ** 0.2, 1.01)
    axis.set_yscale("log")
    axis.set_ylim(low / room, high * room)
    few = len(arms) <= OUTLIERS
    ticks = MaxNLocator(2 if few else 7, steps=[1, 2, 5, 10])
    shown = LogLocator(10, (1, 2, 5)) if high > 4 * low else ticks
    top = high * room**0.7  # none where the break is drawn
    axis.yaxis.set_major_locator(FixedLocator([tick for tick in shown.tick_values(low / room, high * room) if tick <= top]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _scale_flops(axis: Axes, arms: Sequence[Arm]) -> None:
    """Linear while the arms lie within a factor of 3, logarithmic beyond."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

    values = [arm.flops_per_token for arm in arms]
    low, high = min(values), max(values)
    if high > 3 * low:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(low / (high / low) ** 0.1, high * (high / low) ** 0.22)
    else:
        span = max(high - low, 0.02 * high)
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.set_xlim(low - 0.12 * span, high + 0.26 * span)
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.tick_params(axis="x", length=3, color=RULE)


def _break(axes: Any) -> None:
    """Two strokes where the perplexity axis leaves values out."""
    upper, lower = axes
    upper.spines["bottom"].set_visible(False)
    upper.tick_params(axis="x", length=0)
    stroke = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 9, "linestyle": "none", "color": RULE, "clip_on": False}
    upper.plot([0], [0], transform=upper.transAxes, **stroke)
    lower.plot([0], [1], transform=lower.transAxes, **stroke)


def _words(figure: Figure, arms: Sequence[Arm]) -> None:
    """Title, how to read it, and which shape is what."""
    from matplotlib.lines import Line2D

    reading = "Held-out answers. Lower predicts better, further left costs less; bars are 95 % intervals."
    title(figure, "Perplexity against FLOPs per token", reading)
    figure.text(0.5275, 0.025, "FLOPs per token, as executed", fontsize=TYPE, color=FAINT, ha="center")
    groups = {arm.kind.group for arm in arms} - {"base", "bound"}
    looks = [look for group, look in LOOKS.items() if group in groups]
    handles = [Line2D([], [], color=k.colour, marker=k.marker, linestyle="none", markersize=6.5, label=k.name) for k in looks]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.019, 0.898),
        ncols=max(1, len(handles)),
        frameon=False,
        fontsize=TYPE,
        labelcolor="linecolor",
        handletextpad=0.1,
        columnspacing=1.6,
    )


def _label(axis: Axes, arms: Sequence[Arm]) -> None:
    """Name every point, with a thin line to it where the name had to move away."""
    unit = axis.figure.dpi / 72  # pixels of a typographic point
    texts = [
        axis.text(0, 0, f"{arm.label}  {level(arm.perplexity)}", fontsize=TYPE, color=LOOKS[arm.kind.group].colour, va="center")
        for arm in arms
    ]
    marks = [_mark(axis, arm, text.get_window_extent(), unit) for arm, text in zip(arms, texts, strict=True)]
    window = axis.get_window_extent()
    to_data = axis.transData.inverted().transform
    frame = Box(window.x0 / unit, window.y0 / unit, window.x1 / unit, window.y1 / unit)
    for text, mark, spot in zip(texts, marks, place(marks, frame), strict=True):
        text.set_position(to_data((spot.box.left * unit, (spot.box.bottom + spot.box.top) / 2 * unit)))
        if spot.leader:
            ends = to_data([[n * unit for n in mark.at], [n * unit for n in spot.box.nearest(mark.at)]])
            axis.plot(*ends.T, color=RULE, linewidth=0.8, zorder=2)


def _mark(axis: Axes, arm: Arm, extent: Any, unit: float) -> Mark:
    """The point, its interval and its name's size in typographic points."""
    x, y = axis.transData.transform((arm.flops_per_token, arm.perplexity)) / unit
    low, high = (axis.transData.transform((arm.flops_per_token, edge))[1] / unit for edge in arm.ci95)
    body = Box(x - 5, min(low, y - 5), x + 5, max(high, y + 5))
    return Mark((x, y), body, extent.width / unit, extent.height / unit)
