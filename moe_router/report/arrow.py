"""Arrow (Ostapenko et al. 2024), PEFT's own: every token chooses two experts in every layer, by prototypes and without a gate.

An expert's prototype in a layer is the main direction of B·A; a token goes to the experts whose prototypes its input points
along most. Where there is a shared expert, each expert is taken together with it, as it was trained.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moe_router.experts.export import export_adapter
from moe_router.gate.baselines import search_temperature
from moe_router.progress import Progress
from moe_router.report import costs
from moe_router.report.apart import Unrouted, measured
from moe_router.report.arms import Costs
from moe_router.report.bench import Bench
from moe_router.report.measure import Measurement, bits_of, training_flops
from moe_router.report.registry import one_rank, shared_rank

TOP = 2
TEMPERATURES = (0.1, 0.3, 1.0, 3.0)
"""Of the softmax over a token's two experts; the tune split chooses."""


@dataclass(frozen=True)
class ArrowModel(Unrouted):
    """A base under PEFT's Arrow."""

    layers: Sequence[Any]
    """PEFT's Arrow part of every adapted layer."""

    def warm(self, temperature: float) -> None:
        """Set the temperature of every layer's softmax."""
        for layer in self.layers:
            layer.temperature = temperature


@contextlib.contextmanager
def open_arrow(bench: Bench) -> Iterator[ArrowModel]:
    """The library's experts under PEFT's Arrow; the base has its own layers back afterwards."""
    from peft import ArrowConfig, create_arrow_model
    from peft.tuners.lora.arrow import ArrowLoraLinearLayer

    folder = bench.workspace.arms / "arrow"
    shutil.rmtree(folder, ignore_errors=True)
    paths = [folder / str(place) for place in range(len(bench.library.names))]
    for name, path in zip(bench.library.names, paths, strict=True):
        export_adapter(bench.library, {name: 1.0}, path)
    config = ArrowConfig(top_k=min(TOP, len(paths)), rng_seed=bench.seed)
    model = create_arrow_model(bench.base.model, [str(path) for path in paths], config).eval()
    shutil.rmtree(folder)
    try:
        layers = [module for module in model.modules() if isinstance(module, ArrowLoraLinearLayer)]
        yield ArrowModel(replace(bench.base, model=model), layers)
    finally:
        model.unload()


def measure_arrow(name: str, bench: Bench, progress: Progress) -> Measurement:
    """The arm. Raises LibraryError when an expert is damaged."""
    progress.stage(f"measure {name}", len(TEMPERATURES) + 1)
    with open_arrow(bench) as model:

        def nats_at(weights: np.ndarray) -> float:
            model.warm(float(weights[0, 0]))
            progress.advance(1)
            return float(model.score(bench.tune_examples).nats.sum())

        best, _ = search_temperature(TEMPERATURES, lambda t: np.full((1, 1), t), nats_at)
        model.warm(best)
        tokens = sum(int(bench.library.cards[expert]["tokens"]) for expert in bench.library.names)
        found = measured(name, model, bench, _costs(bench), trained_tokens=tokens)
    progress.advance(1)
    return found


def _costs(bench: Bench) -> Costs:
    """PEFT computes every expert for every token; two would do. Each layer compares its input with all prototypes."""
    library, shape = bench.library, bench.shape
    adapted, each, shared = bench.adapted, one_rank(library), shared_rank(library)
    experts = len(library.names)
    running = costs.base_flops_per_token(shape, bench.context) + 2.0 * experts * sum(d_in for d_in, _ in adapted)
    executed, active = experts * (each + shared), shared + min(TOP, experts) * each
    per_rank = costs.adapter_params(adapted, 1)
    held, used = per_rank * (shared + experts * each), per_rank * active
    weights, kv = costs.weight_bytes(shape, bits_of(bench.base, library.base.quantization)), costs.kv_bytes_per_token(shape)
    length = float(bench.lengths.mean())
    return Costs(
        flops_per_token=running + costs.adapter_flops_per_token(adapted, executed),
        active_flops_per_token=running + costs.adapter_flops_per_token(adapted, active),
        train_flops=training_flops(bench, library, len(TEMPERATURES) * bench.tokens("tune")),
        adapter_params=held,
        active_adapter_params=used,
        memory_bytes=costs.memory_bytes(weights, held, kv, length),
        decode_bytes_per_token=costs.decode_bytes_per_token(weights, used, kv, length),
    )
