"""The stage that fits the gate: measured losses in, gate.safetensors and gate.json out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from moe_router.config import Config
from moe_router.data.records import Record
from moe_router.data.slices import Slices
from moe_router.errors import LibraryError, WorkspaceError
from moe_router.experts.adapters import RoutedModel
from moe_router.experts.base import load_base
from moe_router.experts.library import Library
from moe_router.experts.scoring import score
from moe_router.experts.train import Split
from moe_router.gate.baselines import MIXING_TEMPERATURES, search_temperature
from moe_router.gate.calibrate import abstain_threshold, confidence_temperature, held_out_calibration_error
from moe_router.gate.drift import reference
from moe_router.gate.features import LEARNED, Memory
from moe_router.gate.feedback import Feedback
from moe_router.gate.fit import Fit, Measured, fit_gate
from moe_router.gate.gate import FORMAT, Gate
from moe_router.gate.losses import measure
from moe_router.gate.sight import Sight, fit_sight
from moe_router.gate.weights import bounds, keep_top, softmax
from moe_router.progress import Progress, Silent
from moe_router.workspace import Workspace, digest_json

REVIEWED = 8
"""A reviewed query counts as this many training queries."""


def train_gate(
    workspace: Workspace,
    config: Config,
    progress: Progress | None = None,
    model: RoutedModel | None = None,
    feedback: Path | None = None,
) -> Gate:
    """Fit the gate of the workspace's library and write it beside the experts.

    Does nothing when the gate there was fitted on the same experts, data and settings; a damaged one is fitted anew.
    `model` is the library already opened, if it is; it stays attached. `feedback` is a review file of misroutes, as
    `Feedback.read` takes it: its queries join the training queries of the expert that should have answered.
    """
    progress = progress or Silent()
    library = Library.load(workspace.experts)
    slices = Slices.load(workspace)
    reviewed = Feedback.read(feedback, library.names) if feedback else None
    inputs = digest_json(
        [FORMAT, library.digest, slices.digest, slices.embedder, asdict(config.gate), reviewed and reviewed.digest]
    )
    found = _existing(workspace, library)
    if found is not None and found.inputs == inputs:
        return found
    opened = model or library.open(load_base(library.base))
    try:
        material = _gather(workspace, config, library, slices, opened, progress).reviewed(reviewed)
        progress.stage("fit gate", 1)
        fitted = _fit(config, library, slices, material, opened, inputs)
    finally:
        if model is None:
            opened.detach()
    fitted.save(workspace.experts)
    progress.advance(1)
    return fitted


def expert_of_slice(library: Library, slices: Slices) -> np.ndarray:
    """The expert's place in the gate for every slice, -1 where the slice's expert was removed or failed: (slices,).

    Raises LibraryError when the library was trained on other slices.
    """
    foreign = sorted(set(library.names) - set(slices.names))
    if foreign:
        raise LibraryError(f"expert {foreign[0]!r} belongs to no slice of this workspace: run `moe-router train-experts` again")
    return np.array([library.names.index(name) if name in library.names else -1 for name in slices.names])


def _existing(workspace: Workspace, library: Library) -> Gate | None:
    try:
        return Gate.load(workspace.experts, library)
    except LibraryError:  # none, of other experts, or damaged: all are made anew
        return None


@dataclass(frozen=True)
class _Material:
    """What the gate is fitted on."""

    sight: Sight
    queries: np.ndarray  # (training records, dimension), as the gate sees them
    experts: np.ndarray  # (training records,) each one's own expert
    gate: Measured
    tune: Measured
    tune_records: Sequence[Record]

    def reviewed(self, feedback: Feedback | None) -> _Material:
        """With the reviewed queries among the training queries, and none of them left out where there are too many."""
        if feedback is None:
            return self
        more, owners = (np.repeat(each, REVIEWED, axis=0) for each in (self.sight.encode(feedback.texts), feedback.owners))
        kept = np.random.default_rng(0).permutation(len(self.queries))[: max(0, LEARNED - len(more))]
        return replace(
            self,
            queries=np.concatenate([self.queries[np.sort(kept)], more]),
            experts=np.concatenate([self.experts[np.sort(kept)], owners]),
        )


def _gather(
    workspace: Workspace, config: Config, library: Library, slices: Slices, model: RoutedModel, progress: Progress
) -> _Material:
    """Nothing of a removed expert's slice goes in: deleting an expert takes its records out of the gate as well."""
    experts = expert_of_slice(library, slices)
    whole = [Split.of(workspace, slices, split) for split in ("train", "gate", "tune")]
    kept = [np.flatnonzero(experts[split.labels] >= 0) for split in whole]
    train, gate, tune = (split.only(chosen) for split, chosen in zip(whole, kept, strict=True))
    if not len(gate.records) or not len(tune.records):
        raise WorkspaceError("the gate or tune split is empty: raise data.gate_share and data.tune_share and prepare again")
    measured = [measure(workspace, library, slices, split, model, progress) for split in ("gate", "tune")]
    sight = fit_sight(config.gate, train, slices, library, model.base)
    seen = [
        replace(each.only(rows), embeddings=sight.of(split))
        for each, rows, split in zip(measured, kept[1:], (gate, tune), strict=True)
    ]
    return _Material(sight, sight.of(train), experts[train.labels], *seen, tune.records)


def _fit(config: Config, library: Library, slices: Slices, material: _Material, model: RoutedModel, inputs: str) -> Gate:
    gate, tune = material.gate, material.tune
    fit = fit_gate(Memory.of(material.queries, material.experts, config.gate.seed), gate, tune)

    def tune_nats(weights: np.ndarray) -> float:
        found = score(model, material.tune_records, weights, template=library.template, max_tokens=library.max_tokens)
        return float(found.nats.sum() / found.tokens.sum())

    logits = fit.logits(tune.embeddings)
    likeness = fit.memory.read(tune.embeddings, len(library.names)).likeness
    top = bounds(config.gate.mode, len(logits), logits.shape[1], config.gate.max_experts)
    mixing, tried = search_temperature(MIXING_TEMPERATURES, lambda t: keep_top(softmax(logits / t), top), tune_nats)
    fitted = Gate(
        names=library.names,
        library_digest=library.digest,
        embedder=slices.embedder,
        embedder_digest=slices.embedder_digest,
        view=material.sight.view,
        mode=config.gate.mode,
        abstain_to=config.gate.abstain_to,
        abstain_message=config.gate.abstain_message,
        max_experts=config.gate.max_experts,
        weight=fit.weight,
        bias=fit.bias,
        evidence_scale=fit.evidence_scale,
        memory=fit.memory,
        mixing_temperature=mixing,
        confidence_temperature=confidence_temperature(logits, tune.nats.argmin(1)),
        threshold=abstain_threshold(likeness, config.gate.abstain_coverage),
        inputs=inputs,
        figures=_figures(config, fit, logits, tune) | {"gate_records": len(gate.tokens), "mixing_nats_per_token": tried},
    )
    return replace(fitted, figures={**fitted.figures, "traffic": reference(fitted, tune.embeddings)})


def _figures(config: Config, fit: Fit, logits: np.ndarray, tune: Measured) -> dict[str, object]:
    best, chosen = tune.nats.argmin(1), logits.argmax(1)
    return {
        "settings": asdict(config.gate),
        "fit": fit.chosen,
        "tried": fit.tried,
        "tune_records": len(best),
        "tune_top1_nats_per_token": tune.nats_per_token(np.eye(logits.shape[1])[chosen]),
        "tune_oracle_nats_per_token": tune.nats_per_token(np.eye(logits.shape[1])[best]),
        "tune_choice_is_best": float((chosen == best).mean()),
        "tune_calibration_error": held_out_calibration_error(logits, best),
    }
