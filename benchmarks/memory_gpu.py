"""Peak memory of training over a Llama shape in NF4 with random weights, against the estimate that `doctor` gives.

    python benchmarks/memory_gpu.py                                    # 7B and 13B shapes, four recipes, on the GPU
    python benchmarks/memory_gpu.py 7B:h100 7B:consumer-12gb --seconds 120
    python benchmarks/memory_gpu.py tiny:cpu --device cpu              # the same code path on any machine

Every case is `shape:recipe`. The weights are drawn and quantised on the device, so that nothing is downloaded or moved.
Each case takes a few real steps of the trainer, all experts in every step, on random tokens, and prints one JSON line.
On the GPU the peak is the allocator's, plus the optimisers' paged moments; on the CPU, the sum of all live tensors' storages.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe_router.config import Config
from moe_router.doctor import load_of
from moe_router.experts import bnb
from moe_router.experts.base import EMBEDDED_PATH, Base
from moe_router.experts.encode import Example
from moe_router.experts.recipe import recipe
from moe_router.experts.schedule import Job
from moe_router.experts.train import lora_settings, schedule_of, shared_settings
from moe_router.experts.trainer import Trainer
from moe_router.memory import LLAMA, Shape, training

CASES = ("7B:colab-t4-16gb", "7B:consumer-12gb", "7B:h100", "13B:consumer-24gb")
TINY = Shape("tiny", width=256, layers=6, mlp_width=688, vocabulary=2048)
WIDE = Shape("wide", width=512, layers=4, mlp_width=1376, vocabulary=2048)
STEPS = 2
"""The second has the optimiser's moments from the start."""
GIB = 1 << 30


def random_base(shape: Shape, dtype: torch.dtype, device: torch.device) -> Base:
    """A Llama of this shape with random NF4 weights, made on the device layer by layer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=max(1, shape.width // 128),
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    bnb.fill_nf4(model, dtype, device, keep=[model.lm_head])
    for name, parameter in list(model.named_parameters()):
        if parameter.device.type == "meta":
            parent, _, leaf = name.rpartition(".")
            filled = torch.ones if "norm" in name else lambda *a, **k: torch.randn(*a, **k) * 0.02
            value = filled(parameter.shape, dtype=dtype, device=device)
            setattr(model.get_submodule(parent), leaf, nn.Parameter(value, requires_grad=False))
    model.eval().requires_grad_(False)
    bnb.keep_differentiable(model)
    return Base(model, AutoTokenizer.from_pretrained(EMBEDDED_PATH), f"random {shape.name}", "random", dtype, False)


def random_jobs(config: Config, vocabulary: int, steps: int) -> list[Job]:
    """One job per expert, two records in every row, which they fill; half of their tokens are response."""
    experts, random = config.experts, np.random.default_rng(0)
    length = experts.row_tokens // 2
    jobs = []
    for index in range(config.slice.most):
        examples = [
            Example(tuple(random.integers(2, vocabulary, length).tolist()), length // 2)
            for _ in range(2 * steps * experts.rows_per_step)
        ]
        settings = lora_settings(experts, experts.rank)
        jobs.append(Job(f"expert-{index}", examples, settings, experts.learning_rate, experts.rows_per_step))
    return jobs


class LivePeak(TorchDispatchMode):
    """The largest sum of storages that were alive at once, counting those that operators return while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in inputs and storage not in self._seen:
                    self._seen.add(storage)
                    self._add(storage.nbytes())
                    weakref.finalize(storage, self._add, -storage.nbytes())
        return out

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def tensors_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters, buffers and NF4 constants."""
    from itertools import chain

    storages = {}
    for tensor in chain(model.parameters(), model.buffers()):
        state = getattr(tensor, "quant_state", None)
        parts = [tensor, *([state.absmax, state.state2.absmax] if state is not None else [])]
        storages |= {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
    return sum(storages.values())


def paged_bytes(trainer: Trainer) -> int:
    """Moments in CUDA's managed memory: they leave the GPU when it is full, and are in no count of torch's."""
    values = (
        value for optimiser in trainer.optimisers.values() for state in optimiser.state.values() for value in state.values()
    )
    return sum(value.numel() * value.element_size() for value in values if getattr(value, "is_paged", False))


@contextmanager
def peak_of(device: torch.device, model: nn.Module) -> Iterator[dict[str, float]]:
    """Fills in `peak_gib` (tensors) and, on a GPU, `reserved_gib` (what the allocator took from it) and `device_gib`
    (with the driver's context)."""
    found: dict[str, float] = {}
    if device.type == "cpu":
        held = tensors_bytes(model)
        with LivePeak() as live:
            yield found
        found["peak_gib"] = (held + live.peak) / GIB
        return
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield found
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    found["peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
    found["reserved_gib"] = torch.cuda.max_memory_reserved(device) / GIB
    found["device_gib"] = (total - free) / GIB  # of every process on it


def measure(shape: Shape, name: str, device: torch.device) -> dict[str, object]:
    """Train STEPS steps of a recipe over `shape` and compare."""
    config = recipe(name)
    config = config.override({"experts": {"max_tokens": config.experts.row_tokens}})  # every row is full, none is longer
    began = time.monotonic()
    base = random_base(shape, getattr(torch, config.base.dtype), device)
    built = time.monotonic() - began
    schedule = schedule_of(config.experts)
    with peak_of(device, base.model) as peak:
        trainer = Trainer(base, random_jobs(config, shape.vocabulary, STEPS), schedule, shared_settings(config.experts))
        with trainer.model:
            tokens, times = 0, []
            for _ in range(STEPS):
                start = time.monotonic()
                tokens = trainer.train_step()
                times.append(time.monotonic() - start)
        losses = [trainer.outcomes[job.name].losses for job in trainer.jobs]
    peak["paged_gib"] = paged_bytes(trainer) / GIB
    demand = training(shape, load_of(config))
    estimated = (demand.total - demand.runtime) / GIB
    return {
        "case": f"{shape.name}:{name}",
        **{key: round(value, 3) for key, value in peak.items()},
        "estimate_gib": round(estimated, 3),
        "error": round(estimated / (peak["peak_gib"] + peak["paged_gib"]) - 1, 4),
        "estimate_parts_gib": {key: round(value / GIB, 3) for key, value in asdict(demand).items()},
        "step_tokens": tokens,
        "tokens_per_second": round(tokens / times[-1], 1),
        "loss": round(float(np.mean([loss[-1] for loss in losses])), 3) if all(losses) else None,
        "loss_scale": trainer.scale.value,
        "failed": sorted({outcome.failed for outcome in trainer.outcomes.values() if outcome.failed}),
        "build_seconds": round(built, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=CASES, help="shape:recipe")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=150.0, help="start no further case after this time")
    options = parser.parse_args(arguments)
    shapes = {shape.name: shape for shape in (*LLAMA, TINY, WIDE)}
    began = time.monotonic()
    for case in options.cases:
        name, _, wanted = case.partition(":")
        if time.monotonic() - began > options.seconds:
            print(f"left out for lack of time: {case}", file=sys.stderr)
            continue
        print(json.dumps(measure(shapes[name], wanted, torch.device(options.device))), flush=True)
        gc.collect()
        if options.device != "cpu":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
