"""All stages in a row, the base loaded once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_router.config import Config
from moe_router.progress import Progress, Silent
from moe_router.workspace import Workspace

if TYPE_CHECKING:
    from moe_router.data.prepare import Prepared
    from moe_router.data.slices import Slices
    from moe_router.experts.base import Base
    from moe_router.report.document import Report


@dataclass(frozen=True)
class BuildResult:
    """What a build made."""

    workspace: Workspace
    prepared: Prepared
    slices: Slices
    report: Report
    seconds: dict[str, float]
    """Wall time of each stage; near zero where nothing had to be done."""

    def to_json(self) -> dict[str, Any]:
        return {
            "workspace": str(self.workspace.root),
            "prepared": {
                "records": self.prepared.records,
                "rejected": self.prepared.rejected,
                "reasons": self.prepared.reasons,
                "splits": self.prepared.splits,
            },
            "slices": [
                {"name": name, "records": size, "prompts": list(prompts)}
                for name, size, prompts in zip(self.slices.names, self.slices.sizes, self.slices.prompts, strict=True)
            ],
            "report": self.report.to_json(),
            "seconds": self.seconds,
        }

    def lines(self) -> Iterable[str]:
        """Slices, experts, comparison, and where everything was written."""
        from moe_router.report.terminal import SliceRow, lines, slices_table

        rows = [SliceRow(*row) for row in zip(self.slices.names, self.slices.sizes, self.slices.prompts, strict=True)]
        yield f"{self.prepared.records:,} records kept, {self.prepared.rejected:,} rejected"
        yield from lines(slices_table(rows))
        yield from self.report.lines()
        yield f"Written: {self.workspace.records}, {self.workspace.experts}, {self.workspace.reports / 'report.html'}"


def build(
    workspace: Workspace,
    sources: Sequence[Path],
    config: Config,
    progress: Progress | None = None,
    base: Base | None = None,
) -> BuildResult:
    """Prepare, slice, train experts and gate, report. Stages that are up to date return at once."""
    from moe_router.data.prepare import prepare
    from moe_router.data.slices import slice_records
    from moe_router.experts.base import load_base
    from moe_router.experts.library import Library
    from moe_router.experts.probe import AdapterProbe
    from moe_router.experts.train import train_experts
    from moe_router.gate.train import train_gate
    from moe_router.report.make import make_report

    progress = progress or Silent()
    clock = _Clock()
    prepared = prepare(workspace, sources, config, progress)
    for note in prepared.notes if prepared.fresh else ():
        progress.note(note)
    clock.lap("prepare")
    slices = slice_records(workspace, config, progress, AdapterProbe(config))
    for note in slices.notes:
        progress.note(note)
    clock.lap("slice")
    if base is None:
        progress.stage("load base")
        base = load_base(config.base)
    clock.lap("load base")
    train_experts(workspace, config, progress, base)
    clock.lap("train experts")
    library = Library.load(workspace.experts)
    with library.open(base) as model:
        train_gate(workspace, config, progress, model)
    clock.lap("train gate")
    report = make_report(workspace, config, progress, base)
    clock.lap("report")
    return BuildResult(workspace, prepared, slices, report, clock.seconds)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 2)
        self._last = now
