"""The report as files: report.html, report.md, report.json, and every figure as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_router.report.document import Report
from moe_router.workspace import write_json, write_text

ANSWERS = "answers.json"
"""Beside the report, since it holds text of the user's data, which report.json and report.md do not."""


@dataclass(frozen=True)
class Files:
    """Where a report was written."""

    json: Path
    markdown: Path
    html: Path
    figures: tuple[Path, ...]


def save(report: Report, folder: Path, answers: Sequence[Mapping[str, Any]] = ()) -> Files:
    """Write the report into `folder`: figures and pages first, report.json, which marks it complete, last."""
    from moe_router.report.figures import FIGURES
    from moe_router.report.html import page
    from moe_router.report.markdown import markdown
    from moe_router.report.style import inline_svg, save_figure

    drawn, paths = {}, []
    for figure in FIGURES:
        if figure.has(report):
            drawing = figure.draw(report)
            drawn[figure.name] = inline_svg(drawing, figure.alt(report), figure.name)
            paths += [folder / f"{figure.name}.{form}" for form in ("png", "svg")]
            for path in paths[-2:]:
                save_figure(drawing, path)
    files = Files(folder / "report.json", folder / "report.md", folder / "report.html", tuple(paths))
    write_text(files.markdown, markdown(report))
    write_text(files.html, page(report, drawn, answers))
    write_json(files.json, report.to_json())
    return files
