"""Experts joining, leaving and changing name in a workspace: the library, its gate and its slices kept in step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe_router.config import Config
from moe_router.errors import InputError, LibraryError, WorkspaceError
from moe_router.experts.library import Library
from moe_router.progress import Progress, Silent
from moe_router.workspace import Workspace

if TYPE_CHECKING:
    from moe_router.experts.base import Base
    from moe_router.experts.verify import Check
    from moe_router.gate.gate import Gate


def verify_library(workspace: Workspace) -> Iterator[Check]:
    """Every check of the workspace's library, on the tune records of each expert's slice where the workspace has them."""
    from moe_router.data.slices import Slices
    from moe_router.experts.train import Split
    from moe_router.experts.verify import verify

    library = Library.load(workspace.experts)
    try:
        slices = Slices.load(workspace)
        tune = Split.of(workspace, slices, "tune")
    except WorkspaceError:  # a library can be used without the data it came from
        return verify(library)
    return verify(library, tune, slices.names)


def add_expert(
    workspace: Workspace, config: Config, name: str, progress: Progress | None = None, base: Base | None = None
) -> Library:
    """Train an expert for the slice `name`, which has none yet, and show it to the gate; nothing else changes.

    A slice is new when `slice`, `slices split` or an edited data/slices.toml has made it, or its expert was removed. The
    gate knows the new expert by its training queries, the others as before; without a gate there is none afterwards.
    """
    import numpy as np

    from moe_router.data.slices import Slices
    from moe_router.experts.train import Plan, Split, extend_library
    from moe_router.gate import live
    from moe_router.gate.sight import open_sight

    library, slices = Library.load(workspace.experts), Slices.load(workspace)
    gate = _gate(library)
    train, tune = (Split.of(workspace, slices, split) for split in ("train", "tune"))
    plan = Plan(slices.names, train, tune, config, slices.digest)
    made = extend_library(library, plan, name, workspace.checkpoints / "add.safetensors", progress, base)
    if gate is not None:
        own = train.only(np.flatnonzero(train.labels == slices.names.index(name)))
        queries = open_sight(gate, library, base).of(own)
        live.add_expert(gate, made, queries, config.gate.seed).save(made.path)
    return made


def remove_expert(workspace: Workspace, config: Config, name: str, progress: Progress | None = None) -> Library:
    """Delete a routed expert and fit the gate anew without its slice's records.

    Where the workspace has no data any more, a gate over a shared expert only forgets the name, since the shared expert has
    learned from the slice as well; that of isolated experts is deleted, since it remembers the slice's queries.
    """
    from moe_router.gate import live

    library = Library.load(workspace.experts)
    gate = _gate(library)
    made = library.remove(name)
    if workspace.records.exists() and workspace.slices.exists():
        _fit_gate(workspace, config, made, progress or Silent())
    elif gate is not None and made.has_shared:
        live.remove_expert(gate, made, name).save(made.path)
    return made


def rename_expert(workspace: Workspace, config: Config, old: str, new: str) -> Library:
    """Call a routed expert, and the slice it was trained on, otherwise; the gate stays the same but for the name."""
    from moe_router.data.editing import rename_slice
    from moe_router.data.slices import Slices

    library = Library.load(workspace.experts)
    gate = _gate(library)
    made = library.rename(old, new)
    try:
        if old in Slices.load(workspace).names:
            rename_slice(workspace, config, old, new)
    except (WorkspaceError, InputError):  # a library can be used without the data it came from
        pass
    if gate is not None:
        replace(gate, names=made.names, library_digest=made.digest).save(made.path)
    return made


def import_expert(workspace: Workspace, folder: Path, name: str, base: Base | None = None) -> Library:
    """Take a PEFT adapter in as an expert; the gate is deleted, since it does not know it."""
    from moe_router.experts.base import load_base
    from moe_router.experts.export import import_adapter

    library = Library.load(workspace.experts)
    return import_adapter(library, folder, name, base or load_base(library.base))


def _gate(library: Library) -> Gate | None:
    from moe_router.gate.gate import Gate

    try:
        return Gate.load(library.path, library)
    except LibraryError:  # none yet, or an old one: there is nothing to keep
        return None


def _fit_gate(workspace: Workspace, config: Config, library: Library, progress: Progress) -> None:
    from moe_router.experts.base import load_base
    from moe_router.gate.train import train_gate

    with library.open(load_base(library.base)) as model:
        train_gate(workspace, config, progress, model)
