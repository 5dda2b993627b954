"""All experts merged into one adapter, with no gate: PEFT's own TIES and DARE, cut back to the rank that a route uses.

The products B·A of every expert are merged layer by layer, as PEFT's `ties_svd` and `dare_linear_svd` do, and the result
is written as a low-rank adapter again. The shared expert stays as it is, always on.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moe_router.experts.library import CARD, INDEX, SHARED, Library, checksum
from moe_router.experts.peft_format import LoraSettings, load_factors, load_settings, save_adapter
from moe_router.progress import Progress
from moe_router.workspace import digest_json, write_json

METHODS = {"ties": 0.2, "dare": 0.5}
"""Share of each expert's values that is kept: what TIES's authors use, and half at random for DARE."""
OVERSAMPLED = 8
"""Directions beyond the rank in the randomised decomposition (Halko et al. 2011)."""
ROUNDS = 4


def merge_deltas(deltas: Sequence[torch.Tensor], method: str) -> torch.Tensor:
    """One update from several.

    `ties` keeps each one's largest values and averages those of the majority's sign (Yadav et al. 2023); `dare` drops
    values at random, scales up the rest and averages (Yu et al. 2024), with torch's global random state.

    *Shape:* (d_out, d_in) each → (d_out, d_in).
    """
    from peft.utils.merge_utils import dare_linear, ties

    density = METHODS[method]
    if method == "ties":
        return ties(list(deltas), torch.ones(len(deltas)), density)
    return dare_linear(list(deltas), torch.full((len(deltas),), 1 / len(deltas)), density)


def low_rank(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest product of that rank: A (rank, d_in), B (rank, d_out), with B.T·A ≈ delta (d_out, d_in)."""
    wanted = min(rank + OVERSAMPLED, *delta.shape)
    u, s, v = torch.svd_lowrank(delta, q=wanted, niter=ROUNDS)
    root = s[:rank].sqrt()
    a, b = torch.zeros(rank, delta.shape[1]), torch.zeros(rank, delta.shape[0])
    a[: len(root)], b[: len(root)] = (v[:, :rank] * root).T, (u[:, :rank] * root).T
    return a, b


def merge_library(path: Path, library: Library, method: str, rank: int, progress: Progress, seed: int = 0) -> Library:
    """A library of one routed expert, all of `library`'s merged, at `path`; the one there, if it was made of the same.

    Raises LibraryError when an expert is damaged.
    """
    inputs = digest_json([library.digest, method, METHODS[method], rank, seed])
    if (path / INDEX).exists():
        earlier = Library.load(path)
        if earlier.inputs == inputs:
            return earlier
        shutil.rmtree(path)
    factors = [load_factors(library.path / name) for name in library.names]
    scales = [load_settings(library.path / name).scale for name in library.names]
    merged = {}
    progress.stage(f"merge by {method}", len(factors[0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in factors[0]:
            deltas = [s * (f[module][1].float().T @ f[module][0].float()) for s, f in zip(scales, factors, strict=True)]
            a, b = low_rank(merge_deltas(deltas, method), rank)
            merged[module] = a.to(factors[0][module][0].dtype), b.to(factors[0][module][1].dtype)
            progress.advance(1)
    save_adapter(path / method, merged, LoraSettings(rank, rank, False), library.base.model)
    made = replace(library, path=path, names=(method,), inputs=inputs, cards=_cards(path, library, method, rank))
    if library.has_shared:
        shutil.copytree(library.path / SHARED, path / SHARED, dirs_exist_ok=True)
    made.save_index()
    return made


def _cards(path: Path, library: Library, method: str, rank: int) -> dict[str, Any]:
    """The merged expert's card, with the tokens that its parts saw, beside the shared expert's."""
    parts = [library.cards[name] for name in library.names]
    card = {key: parts[0][key] for key in ("base", "base_digest", "learning_rate", "rate_search") if key in parts[0]}
    card |= {"name": method, "rank": rank, "merged": list(library.names), "sha256": checksum(path / method)}
    card |= {key: sum(int(part[key]) for part in parts) for key in ("records", "tokens", "target_tokens")}
    write_json(path / method / CARD, card)
    shared = {SHARED: library.cards[SHARED]} if library.has_shared else {}
    return shared | {method: card}
