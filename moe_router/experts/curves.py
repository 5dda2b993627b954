"""Training to look at: TensorBoard while it runs, a picture of the losses afterwards."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_router.errors import ConfigError
from moe_router.workspace import atomic

if TYPE_CHECKING:
    from moe_router.experts.trainer import Trainer

PICTURE = "losses.png"
SMOOTHED = 20
"""The curves are means over the last so many steps."""


class Log:
    """TensorBoard scalars of every expert by its own steps: loss, learning rate, gradient norm, tune loss."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError where TensorBoard is not installed."""
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("experts.tensorboard needs TensorBoard: pip install 'moe-router[tensorboard]'")
        self.folder = folder
        self._writer: Any = None
        self._told: dict[str, tuple[int, int]] = {}

    def write(self, trainer: Trainer) -> None:
        """Add what is new since the last call; after a resume, from there on."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder), purge_step=max(o.steps for o in trainer.outcomes.values()))
        for name, outcome in trainer.outcomes.items():
            steps, evaluations = self._told.get(name, (max(0, outcome.steps - 1), max(0, len(outcome.evaluations) - 1)))
            for step in range(steps, outcome.steps):
                self._writer.add_scalar(f"loss/{name}", outcome.losses[step], step + 1)
                rate = trainer.rates[name] * trainer.schedule.rate(step, trainer.lengths[name])
                self._writer.add_scalar(f"learning rate/{name}", rate, step + 1)
            for step, nats in outcome.evaluations[evaluations:]:
                self._writer.add_scalar(f"tune loss/{name}", nats, step)
            self._told[name] = outcome.steps, len(outcome.evaluations)
        if trainer.norms:
            for name, norm in trainer.norms.items():
                self._writer.add_scalar(f"gradient norm/{name}", norm, trainer.outcomes[name].steps)

    def close(self) -> None:
        """Write out what is buffered."""
        if self._writer is not None:
            self._writer.close()


def draw_losses(cards: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A PNG of every expert's training loss, smoothed, and its evaluations, from the experts' cards."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, card in cards.items():
        losses = card.get("losses", [])
        if losses:
            smooth = smoothed(losses)
            (line,) = axes.plot(np.arange(1, len(smooth) + 1), smooth, label=name, linewidth=2.2 if name == "shared" else 1.2)
            if card.get("evaluations"):
                steps, nats = zip(*card["evaluations"], strict=True)
                axes.plot(steps, nats, "o", color=line.get_color(), markersize=4)
    axes.set_xlabel("steps of the expert")
    axes.set_ylabel(f"nats per response token (mean of {SMOOTHED} steps; dots: tune records)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, ncols=2)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """Mean over each step and the SMOOTHED - 1 before it: (steps,)."""
    sums = np.cumsum(np.concatenate([[0.0], losses]))
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - SMOOTHED)
    return (sums[ends] - sums[starts]) / (ends - starts)
