"""Every figure of the report: its file name, when there is one, how it is drawn, and what it says in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_router.report import gate_plots, maps, plot
from moe_router.report.document import Report
from moe_router.report.words import amount, level, percent, si

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class Figure:
    """One picture."""

    name: str
    """Of its files, without suffix."""
    has: Callable[[Report], bool]
    """Whether the report has the figures for it."""
    draw: Callable[[Report], Drawing]
    alt: Callable[[Report], str]
    """The picture in words."""


def _arms_alt(report: Report) -> str:
    points = "; ".join(f"{arm.label} {level(arm.perplexity)} at {si(arm.flops_per_token)}" for arm in report.arms)
    return f"Perplexity against FLOPs per token, lower left is better: {points}."


def _slices_alt(report: Report) -> str:
    rows = "; ".join(f"{row.name} {amount(row.against)}" for row in report.slices if row.against)
    return f"The mixture's perplexity against its fair rival, slice by slice: {rows}."


def _heat_alt(report: Report) -> str:
    found = report.routing
    best = [found.experts[min(range(len(levels)), key=levels.__getitem__)] for levels in found.perplexity]
    pairs = "; ".join(f"{slice_}: {expert}" for slice_, expert in zip(found.experts, best, strict=True))
    return f"Perplexity of every expert on every slice. The best expert of each slice: {pairs}."


def _confusion_alt(report: Report) -> str:
    found = report.routing

    def told(rows: tuple[tuple[int, ...], ...]) -> str:
        parts = []
        for at, (name, row) in enumerate(zip(found.experts, rows, strict=True)):
            if sum(row):
                other = max((i for i in range(len(row)) if i != at), key=row.__getitem__, default=at)
                most = f", {found.experts[other]} {percent(row[other] / sum(row))}" if other != at and row[other] else ""
                parts.append(f"{name} {percent(row[at] / sum(row))}{most}")
        return "; ".join(parts)

    return (
        "Which expert the gate chooses first. By the query's own slice, the slice's expert and the most frequent other: "
        f"{told(found.chosen_by_slice)}. By the expert really best: {told(found.chosen_by_best)}."
    )


def _routes_alt(report: Report) -> str:
    found = report.routing
    shares = zip(found.experts, found.weight, found.best, strict=True)
    rows = "; ".join(f"{name} {percent(weight)}, really best {percent(best)}" for name, weight, best in shares)
    return f"Share of the routing weight that each expert got: {rows}."


def _confidence_alt(report: Report) -> str:
    found = report.routing
    bins = "; ".join(f"{confidence:.2f} right {percent(share)}" for confidence, share, _ in found.calibration)
    (some, low), (_, whole) = found.risk[0], found.risk[-1]
    return (
        f"Calibration of the gate's confidence: {bins}. Perplexity of the mixture is {level(low)} on the most confident "
        f"{percent(some)} of the queries and {level(whole)} on all."
    )


def _curve_alt(report: Report) -> str:
    points = "; ".join(f"{p.arm} {level(p.perplexity)} after {si(p.trained_tokens)} tokens" for p in report.curve)
    return f"Perplexity against training tokens: {points}."


def _map_alt(report: Report) -> str:
    found = report.slice_map
    parts = []
    for index, name in enumerate(found.slices):
        leads = [lead for lead, slice_ in zip(found.lead, found.slice, strict=True) if slice_ == index]
        if leads:
            parts.append(f"{name} {percent(sum(lead >= 0 for lead in leads) / len(leads))}")
    return f"Map of the test queries by slice. Share of each that the mixture predicts better: {'; '.join(parts)}."


FIGURES = (
    Figure("perplexity-flops", lambda report: bool(report.arms), lambda report: plot.draw(report.arms), _arms_alt),
    Figure("training-tokens", lambda report: bool(report.curve), lambda report: maps.draw_curve(report.curve), _curve_alt),
    Figure(
        "slices",
        lambda report: any(row.against for row in report.slices),
        lambda report: gate_plots.draw_slices(report.slices),
        _slices_alt,
    ),
    Figure(
        "slice-map",
        lambda report: report.slice_map is not None,
        lambda report: maps.draw_map(report.slice_map),
        _map_alt,
    ),
    Figure(
        "experts-slices",
        lambda report: report.routing is not None,
        lambda report: gate_plots.draw_heat(report.routing),
        _heat_alt,
    ),
    Figure(
        "routes", lambda report: report.routing is not None, lambda report: gate_plots.draw_routes(report.routing), _routes_alt
    ),
    Figure(
        "confusion",
        lambda report: report.routing is not None and bool(report.routing.chosen_by_slice),
        lambda report: gate_plots.draw_confusion(report.routing),
        _confusion_alt,
    ),
    Figure(
        "confidence",
        lambda report: report.routing is not None,
        lambda report: gate_plots.draw_confidence(report.routing),
        _confidence_alt,
    ),
)
