"""How figures look, and their two forms: files for a white page, and SVG that takes its colours from the page around it."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_router.workspace import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, RULE, GRID, PAPER = "#222222", "#666666", "#9a9a9a", "#e8e8e8", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0067a3", "#c24e00", "#007a58", "#a8467e", "#444444"
"""Okabe and Ito's hues, darkened until small type in them reads on white."""
PALE = "#b9bfc6"
HEAT = ("#eef4f9", "#c9dfee", "#8dbbd9", "#3f8bbd", "#0b5a8f")
"""Steps of one hue, strong ones last."""
TYPE = 9.5
VARIABLES = {
    INK: "ink",
    FAINT: "faint",
    RULE: "rule",
    GRID: "grid",
    PAPER: "paper",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
    GREY: "grey",
    PALE: "pale",
    **{colour: f"heat{step}" for step, colour in enumerate(HEAT)},
}
"""The page's CSS variable for each colour; page.css gives both a light and a dark value."""
_RC = {"svg.hashsalt": "moe-router", "svg.fonttype": "path"}


def save_figure(figure: Figure, path: Path) -> None:
    """Write PNG or SVG, by the suffix of `path`; the same figures give the same bytes."""
    with atomic(path) as temporary:
        _write(figure, temporary, path.suffix.lstrip("."))


def inline_svg(figure: Figure, words: str, name: str) -> str:
    """The figure as an SVG element without a size of its own, for a page that defines the variables.

    `words` describe it to those who cannot see it; its ids start with `name`, so that several figures share a page.
    """
    out = io.StringIO()
    _write(figure, out, "svg")
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = re.sub(re.escape(colour), f"var(--{variable})", text, flags=re.IGNORECASE)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(words)}">{rest}'


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor=PAPER)


def title(figure: Figure, text: str, reading: str) -> None:
    """What is shown, and how to read it, at a fixed distance from the top whatever the height."""
    height = figure.get_figheight()
    figure.text(0.028, 1 - 0.32 / height, text, fontsize=14, fontweight="bold", color=INK)
    figure.text(0.028, 1 - 0.55 / height, reading, fontsize=TYPE, color=FAINT)


def plain(axis: Axes, grid: str = "y") -> None:
    """A faint grid along one direction and no frame but the bottom line."""
    axis.set_facecolor(PAPER)
    axis.grid(True, axis=grid, color=GRID, linewidth=0.8, zorder=0)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelsize=9, labelcolor=FAINT)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(RULE)


def _write(figure: Figure, target: Any, form: str) -> None:
    import matplotlib

    with matplotlib.rc_context(_RC):
        figure.savefig(target, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None)
