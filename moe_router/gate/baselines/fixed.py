"""One expert per slice or per query, from losses that are known: a floor and a bound for every gate."""

from __future__ import annotations

import numpy as np


def best_fixed(slices: np.ndarray, nats: np.ndarray, measured_slices: np.ndarray) -> np.ndarray:
    """For each slice the one expert with the lowest loss on measured records of it.

    *Shape:* slices (queries,), nats (measured, experts), measured_slices (measured,).
    """
    experts = nats.shape[1]
    own = [nats[measured_slices == s].sum(0).argmin() if (measured_slices == s).any() else s for s in range(experts)]
    return one_expert(np.array(own)[slices], experts)


def oracle(nats: np.ndarray) -> np.ndarray:
    """The expert that turns out best for each query: a minimum over noisy experts, so it flatters."""
    return one_expert(nats.argmin(1), nats.shape[1])


def one_expert(choice: np.ndarray, experts: int) -> np.ndarray:
    """One expert per query, by index (queries,)."""
    return np.eye(experts, dtype=np.float32)[choice]
