"""Whether every expert of a library is whole, was really trained, and is worth having."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from moe_router.data.records import Record
from moe_router.errors import LibraryError
from moe_router.experts.adapters import SHARED, RoutedModel
from moe_router.experts.base import Base, load_base
from moe_router.experts.library import Library
from moe_router.experts.peft_format import load_factors, peft_logits
from moe_router.experts.scoring import Scores, score
from moe_router.experts.train import Split

RECORDS = 32
"""Most records of a slice that an expert is tried on."""
TEXT = "How do I ask for a refund? Quero trocar um artigo."
LOOSENESS = {torch.float32: 1e-4, torch.float16: 2.5e-3, torch.bfloat16: 0.02}
"""Difference from PEFT's logits that rounding explains, as a share of their norm: PEFT adds in fp32, we in the compute type.
0.009 to 0.013 for 22 experts in bfloat16, whose adapters moved the logits by a sixth to a half of their norm."""


@dataclass(frozen=True)
class Check:
    """One finding of `verify`."""

    name: str
    check: str
    """`file`, `updated`, `logits`, `peft` or `slice`."""
    ok: bool
    detail: str


def verify(
    library: Library, tune: Split | None = None, slices: Sequence[str] = (), base: Base | None = None
) -> Iterator[Check]:
    """Check every member of a library; with the workspace's tune split, also on the records of its own slice.

    `slices` names the labels of `tune`. Ends after the first damaged file, since nothing can be loaded then.
    """
    for name in library.members:
        try:
            library.check(name)
            factors = load_factors(library.path / name)
        except LibraryError as error:
            yield Check(name, "file", False, str(error))
            return
        yield Check(name, "file", True, "finite, matches its checksum")
        still = [path for path, (_, b) in factors.items() if not b.any()]
        detail = f"{len(factors) - len(still)} of {len(factors)} layers were trained"
        yield Check(name, "updated", not still, detail if not still else f"{detail}, {still[0]} was not")
    base = base or load_base(library.base)
    yield from _logits(library, base)
    if tune is not None:
        with library.open(base) as model:
            records = {name: _own(tune, slices, name) for name in library.names}
            yield from _on_slices(model, library, records)


@torch.no_grad()
def _logits(library: Library, base: Base) -> Iterator[Check]:
    """Each member alone moves the logits, and to where PEFT moves them."""
    tokens = torch.tensor([base.tokenizer(TEXT, add_special_tokens=False)["input_ids"]], device=base.device)
    plain = base.model(input_ids=tokens, use_cache=False).logits.float()
    ours = {}
    with library.open(base) as model:
        for name in library.members:
            weights = np.array([[float(other == name) for other in library.names]], dtype=np.float32)
            with model.routed(model.route(weights, np.array([float(name == SHARED)]))):
                ours[name] = base.model(input_ids=tokens, use_cache=False).logits.float()
    for name, logits in ours.items():
        moved = float((logits - plain).abs().max())
        yield Check(name, "logits", moved > 0, f"moves a logit by {moved:.3g}")
        theirs = peft_logits(base.model, library.path / name, tokens).float()
        apart, allowed = float((logits - theirs).norm() / theirs.norm()), LOOSENESS[base.dtype]
        detail = f"PEFT's logits differ by {apart:.2g} of their norm (rounding explains {allowed:.2g})"
        yield Check(name, "peft", apart <= allowed, detail)


def _on_slices(model: RoutedModel, library: Library, records: Mapping[str, Sequence[Record]]) -> Iterator[Check]:
    for index, (name, own) in enumerate(records.items()):
        if not own:
            yield Check(name, "slice", True, "not tried: the workspace has no tune records of its slice")
            continue
        weights = np.zeros((len(own), len(library.names)), dtype=np.float32)
        rivals = {"the base": _score(model, library, own, weights, 0.0)}
        if library.has_shared:
            rivals["the shared expert alone"] = _score(model, library, own, weights, 1.0)
        weights[:, index] = 1
        found = _score(model, library, own, weights, 1.0)
        lost = [rival for rival, other in rivals.items() if found.nats.sum() >= other.nats.sum()]
        against = ", ".join(f"{rival} {other.perplexity:.3f}" for rival, other in rivals.items())
        detail = f"perplexity {found.perplexity:.3f} on {len(own)} tune records of its slice ({against})"
        yield Check(name, "slice", not lost, detail + (f": does not beat {' or '.join(lost)}" if lost else ""))


def _score(model: RoutedModel, library: Library, records: Sequence[Record], weights: np.ndarray, shared: float) -> Scores:
    always = np.full(len(records), shared, dtype=np.float32)
    return score(model, records, weights, always, template=library.template, max_tokens=library.max_tokens)


def _own(tune: Split, slices: Sequence[str], name: str) -> list[Record]:
    if name not in slices:
        return []
    return [tune.records[i] for i in np.flatnonzero(tune.labels == list(slices).index(name))[:RECORDS]]
