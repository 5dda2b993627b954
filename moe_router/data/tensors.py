"""Arrays of a workspace as safetensors files that say what they were made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from moe_router.errors import WorkspaceError
from moe_router.workspace import atomic


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], note: dict[str, str]) -> None:
    """Write arrays with a note, atomically."""
    from safetensors.numpy import save_file

    with atomic(path) as temporary:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, temporary, metadata=note)


def read_tensors(path: Path, note: dict[str, str], names: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of a file (or those of `names`) that `write_tensors` wrote with the same note; else WorkspaceError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            if file.metadata() != note:
                raise WorkspaceError(f"{path} is of another run than slices.json: run `moe-router slice` again")
            return {name: file.get_tensor(name) for name in names or file.keys()}
    except (OSError, SafetensorError) as error:
        raise WorkspaceError(f"{path} is missing or damaged ({error}): run `moe-router slice` again") from error
