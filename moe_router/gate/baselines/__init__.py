"""Published and trivial gates on the same experts: each gives weights (queries, experts)."""

from moe_router.gate.baselines.blind import random_gate, shuffled, uniform
from moe_router.gate.baselines.centroids import CENTROID_TEMPERATURES, cbtm
from moe_router.gate.baselines.fixed import best_fixed, one_expert, oracle
from moe_router.gate.baselines.labels import cluster_label, slice_classifier
from moe_router.gate.baselines.neighbours import nearest_neighbours
from moe_router.gate.baselines.search import MIXING_TEMPERATURES, search_temperature

__all__ = [
    "CENTROID_TEMPERATURES",
    "MIXING_TEMPERATURES",
    "best_fixed",
    "cbtm",
    "cluster_label",
    "nearest_neighbours",
    "one_expert",
    "oracle",
    "random_gate",
    "search_temperature",
    "shuffled",
    "slice_classifier",
    "uniform",
]
