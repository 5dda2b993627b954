"""Wide against gathered adapters on the embedded base: forward tokens/s of each form, and their ratio.

    python benchmarks/adapter_forms.py

One run measures both on the same device for several numbers of experts and batch shapes.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from moe_router.config import BaseConfig
from moe_router.experts.adapters import SHARED, RankLayout, RoutedModel
from moe_router.experts.base import load_base

REPEATS = 7
SHAPES = ((1, 1), (16, 1), (8, 64))
"""Rows and tokens of each: decode alone, decode in a batch, prefill or training."""


def seconds(model: RoutedModel, tokens: torch.Tensor, weights: np.ndarray, form: str) -> float:
    """Median time of one forward pass; tokens (rows, seq), weights (rows, experts)."""
    route = model.route(weights, form=form)
    times = []
    with torch.inference_mode(), model.routed(route):
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            model.base.model(input_ids=tokens, use_cache=False)
            if tokens.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    base = load_base(BaseConfig())
    print("experts  slots  active  rows  seq  wide tokens/s  gathered tokens/s  gathered/wide")
    for experts in (2, 8, 16):
        names = tuple(f"e{i}" for i in range(experts))
        layout = RankLayout(names, (8,) * experts, 8)
        with RoutedModel(base, layout, dict.fromkeys((*names, SHARED), 1.0)) as model:
            for rows, seq in SHAPES:
                tokens = torch.randint(2, 8000, (rows, seq), device=base.device)
                weights = np.eye(experts, dtype=np.float32)[np.arange(rows) % experts]
                wide, gathered = (seconds(model, tokens, weights, form) for form in ("wide", "gathered"))
                count = rows * seq
                print(
                    f"{experts:7} {layout.total:6} {16:7} {rows:5} {seq:4} {count / wide:14,.0f} {count / gathered:18,.0f}"
                    f" {wide / gathered:14.2f}"
                )


if __name__ == "__main__":
    main()
