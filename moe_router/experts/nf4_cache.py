"""Keeps a base's NF4 form in the user's cache folder: it is quantised once, and later loads read a quarter of the bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from moe_router.workspace import digest_file, digest_json, read_json, write_json

ENVIRONMENT = "MOE_ROUTER_CACHE"
"""Names another cache folder; set but empty, nothing is cached."""
SUMS = "sha256.json"
UNREADABLE = ("Llama4TextExperts",)
"""transformers 5 takes these apart when it reads a quantised form, and then misses their weights: such bases are not kept."""
SPARE = 4
"""The disk must have room for so many times the model, or nothing is cached."""


def cache_folder() -> Path | None:
    """Where NF4 forms are kept: $MOE_ROUTER_CACHE, else moe-router in the user's cache folder; None when switched off."""
    if (named := os.environ.get(ENVIRONMENT)) is not None:
        return Path(named).expanduser() if named else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe-router"


def place(digest: str, dtype: torch.dtype) -> Path | None:
    """The folder of one base's NF4 form; what quantises it, and the type of the rest of its weights, are part of the name."""
    root = cache_folder()
    if root is None:
        return None
    from importlib.metadata import version

    return root / "nf4" / digest_json([digest, str(dtype), version("bitsandbytes"), version("transformers")])[:32]


def whole(folder: Path) -> bool:
    """Whether the folder holds a form as `keep` wrote it. A damaged one is removed."""
    if not folder.is_dir():
        return False
    try:
        sums = read_json(folder / SUMS)
        if sums and all(digest_file(folder / name) == digest for name, digest in sums.items()):
            return True
    except Exception:  # noqa: BLE001 - whatever is wrong with a cache, the base itself is still there
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return False


def keep(model: nn.Module, folder: Path) -> None:
    """Write the quantised model to `folder`, whole or not at all. A full or read-only disk is no error: nothing is kept."""
    if any(type(module).__name__ in UNREADABLE for module in model.modules()):
        return
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with contextlib.suppress(OSError), _beside(folder) as temporary:
        if shutil.disk_usage(temporary).free < SPARE * size:
            return
        model.save_pretrained(temporary)
        write_json(temporary / SUMS, {path.name: digest_file(path) for path in sorted(temporary.iterdir())})
        temporary.rename(folder)


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
