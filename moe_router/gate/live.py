"""Adding and removing an expert while the gate is in use: every other expert's logits stay what they were.

So the others keep their weights relative to one another for every query, and the abstain threshold its meaning. What a gate
learns from measured losses, of the new expert and of the others in its place, is for `train-gate`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moe_router.errors import LibraryError
from moe_router.experts.library import Library
from moe_router.gate.gate import Gate

EDITED = "edited"
"""Stands for what the gate was fitted on, so that `train-gate` does not take it for its own work."""


def add_expert(gate: Gate, library: Library, queries: np.ndarray, seed: int = 0) -> Gate:
    """The gate with the last expert of `library`, known by the queries it was trained on: (records, dimension), unit length.

    Raises LibraryError unless the library holds the gate's experts, in order, and one more, or there are no queries.
    """
    if library.names[:-1] != gate.names:
        raise LibraryError("the library must hold the gate's experts and one more at the end: run `moe-router train-gate`")
    if queries.ndim != 2 or queries.shape[1] != gate.dimension or not len(queries):
        raise LibraryError(f"queries of shape {queries.shape}: the gate needs some of {gate.dimension} dimensions")
    return replace(
        gate,
        names=library.names,
        library_digest=library.digest,
        weight=np.concatenate([gate.weight, np.zeros((1, gate.dimension), dtype=np.float32)]),
        bias=np.append(gate.bias, np.float32(gate.bias.mean())),
        memory=gate.memory.with_expert(queries.astype(np.float32), len(gate.names), seed),
        inputs=EDITED,
    )


def remove_expert(gate: Gate, library: Library, name: str) -> Gate:
    """The gate without an expert, for the library that it was removed from.

    Its queries stay in the gate as nobody's until `train-gate`, since the others' claims are made of all prototypes; queries
    that only it knew are abstained on. Raises LibraryError unless the library holds the gate's other experts, in order.
    """
    if name not in gate.names or library.names != tuple(other for other in gate.names if other != name):
        raise LibraryError(f"the library must hold the gate's experts without {name!r}: run `moe-router train-gate`")
    place = gate.names.index(name)
    return replace(
        gate,
        names=library.names,
        library_digest=library.digest,
        weight=np.delete(gate.weight, place, axis=0),
        bias=np.delete(gate.bias, place),
        memory=gate.memory.without_expert(place),
        inputs=EDITED,
    )
