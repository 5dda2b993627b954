"""One search of the temperature for every gate, on the same split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

MIXING_TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)


def search_temperature(
    candidates: Sequence[float], weights_at: Callable[[float], np.ndarray], nats_of: Callable[[np.ndarray], float]
) -> tuple[float, dict[str, float]]:
    """The candidate whose weights lose least on the tune split; every gate gets this same search."""
    found = {f"{t:g}": float(nats_of(weights_at(t))) for t in candidates}
    return float(min(found, key=lambda t: found[t])), found
