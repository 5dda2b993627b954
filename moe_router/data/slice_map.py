"""A map of the slices: records as points in two dimensions, as a picture that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST = 1500
"""Records drawn, taken evenly from all."""
WIDTH, HEIGHT, MARGIN = 960, 600, 40
_COLUMNS, _ROW = 4, 22
"""Of the legend under the map."""
_COLOURS = (
    ("#2f5fc4", "#7ba4f5"),
    ("#b3541e", "#f0935c"),
    ("#14796f", "#43c4b6"),
    ("#8a2f86", "#d68bd2"),
    ("#7a6a00", "#d4c243"),
    ("#a8203f", "#f58299"),
    ("#35702a", "#83c974"),
    ("#565d6d", "#a9b2c4"),
)
"""Light and dark: each at least 4.5 : 1 against its page."""
_SHAPES = ("M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z", "M-2.7-2.7h5.4v5.4h-5.4z", "M0-3.6L3.4 2.6H-3.4z", "M0-3.8L3.8 0 0 3.8-3.8 0z")
"""Disc, square, triangle, diamond: slices differ in form as well as in colour."""
_STYLE = """\
.slice-map{color-scheme:light dark;font:600 15px system-ui,sans-serif;background:#fff;color:#1c2330;max-width:100%;height:auto}
.slice-map path{fill-opacity:.6}.slice-map text{fill:#1c2330;stroke:#fff;stroke-width:4px;paint-order:stroke;text-anchor:middle}
.slice-map .key{font-weight:400;stroke:none;text-anchor:start}
@media (prefers-color-scheme:dark){.slice-map{background:#1a1f28}.slice-map text{fill:#e6e9ef;stroke:#1a1f28}}
"""


@dataclass(frozen=True)
class SliceMap:
    """Points of the map, and how much of the slices' differences it shows."""

    points: np.ndarray  # (points, 2) float
    labels: np.ndarray  # (points,) int64
    centers: np.ndarray
    """The middle of each slice's points: (slices, 2) float."""
    shown: float
    """Share of the variance between the slices' centroids that lies in the two directions."""


def project(embeddings: np.ndarray, labels: np.ndarray, centroids: np.ndarray, seed: int = 0) -> SliceMap:
    """Records in the two directions in which slices differ most: principal components of their centroids.

    With fewer than three slices, of the records themselves. *Shape:* embeddings (records, dimension), labels (records,),
    centroids (slices, dimension).
    """
    from sklearn.decomposition import PCA

    slices = range(len(centroids))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(embeddings))[:MOST])
    basis = centroids if len(centroids) > 2 else embeddings[drawn]
    found = PCA(2, svd_solver="full").fit(basis)
    shown = float(found.explained_variance_ratio_.sum())
    points, own = found.transform(embeddings[drawn]), labels[drawn]
    middle = [points[own == label] if (own == label).any() else found.transform(centroids[[label]]) for label in slices]
    return SliceMap(points, own, np.stack([of.mean(0) for of in middle]), shown)


def draw(made: SliceMap, names: Sequence[str], sizes: Sequence[int]) -> str:
    """The map as SVG: self-contained, light or dark as the reader's system is, every slice named beside its points."""
    low, high = np.quantile(made.points, [0.002, 0.998], axis=0)
    scale = (np.array([WIDTH, HEIGHT]) - 2 * MARGIN) / np.maximum(high - low, 1e-9)

    def at(points: np.ndarray) -> np.ndarray:
        placed = (np.clip(points, low, high) - low) * scale
        return np.stack([MARGIN + placed[:, 0], HEIGHT - MARGIN - placed[:, 1]], 1)

    spots = at(made.points)
    groups = "".join(
        f'<g class="c{label % len(_COLOURS)}"><title>{html.escape(name)}: {sizes[label]:,} training records</title>'
        + "".join(_mark(x, y, label) for x, y in spots[made.labels == label].tolist())
        + "</g>"
        for label, name in enumerate(names)
    )
    texts = "".join(
        f'<text x="{x:.0f}" y="{y:.0f}">{html.escape(name)}</text>'
        for name, (x, y) in zip(names, _apart(at(made.centers)).tolist(), strict=True)
    )
    legend = "".join(
        f'<g class="c{label % len(_COLOURS)}">{_mark(*_entry(label), label)}</g>'
        f'<text class="key" x="{_entry(label)[0] + 12:.0f}" y="{_entry(label)[1] + 5:.0f}">{html.escape(name)}</text>'
        for label, name in enumerate(names)
    )
    height = HEIGHT + _ROW * -(-len(names) // _COLUMNS)
    title = "Map of the slices"
    told = f"{len(spots):,} records in {len(names)} slices: {', '.join(names)}. Records about alike lie near each other."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="slice-map" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'role="img" aria-labelledby="slice-map-title slice-map-text"><title id="slice-map-title">{title}</title>'
        f'<desc id="slice-map-text">{html.escape(told)}</desc><style>{_STYLE}{_colours()}</style>'
        f"{groups}{texts}{legend}</svg>\n"
    )


def _entry(label: int) -> tuple[float, float]:
    """Where the legend's mark of a slice stands."""
    return 16 + label % _COLUMNS * WIDTH / _COLUMNS, HEIGHT + 10 + _ROW * (label // _COLUMNS)


def _mark(x: float, y: float, label: int) -> str:
    return f'<path transform="translate({x:.0f} {y:.0f})" d="{_SHAPES[label % len(_SHAPES)]}"/>'


def _colours() -> str:
    light = "".join(f".slice-map .c{n}{{fill:{one}}}" for n, (one, _) in enumerate(_COLOURS))
    dark = "".join(f".slice-map .c{n}{{fill:{other}}}" for n, (_, other) in enumerate(_COLOURS))
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _apart(places: np.ndarray, height: float = 20.0, width: float = 150.0) -> np.ndarray:
    """Places of texts, moved down until none hides another. *Shape:* (texts, 2)."""
    moved = places.copy()
    for number in np.argsort(places[:, 1], kind="stable"):
        done = moved[[n for n in np.argsort(places[:, 1], kind="stable") if places[n, 1] < places[number, 1]]]
        while len(hit := done[(abs(done - moved[number]) < [width, height]).all(1)]):
            moved[number, 1] = hit[:, 1].max() + height
    moved[:, 0] = np.clip(moved[:, 0], width / 2, WIDTH - width / 2)
    moved[:, 1] = np.clip(moved[:, 1], height, HEIGHT - 4)
    return moved
