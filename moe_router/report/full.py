"""Full fine-tuning as an arm: every weight of the base, unquantised, on the records and tokens of the dense adapters."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from moe_router.experts.base import Base, load_base
from moe_router.experts.encode import encode
from moe_router.experts.full import full_finetune
from moe_router.experts.schedule import Job
from moe_router.experts.train import SEARCH_SHARE, Plan, lora_settings, schedule_of
from moe_router.memory import BF16_BYTES
from moe_router.progress import Progress
from moe_router.report import costs
from moe_router.report.apart import Unrouted, measured
from moe_router.report.arms import Costs
from moe_router.report.bench import Bench
from moe_router.report.measure import Measurement
from moe_router.report.pool import plan_of
from moe_router.report.registry import Training, active_rank
from moe_router.workspace import digest_json, read_json, write_json

RATES = (0.01, 0.03, 0.1)
"""Learning rates that are tried, as shares of the dense adapters': whole weights need smaller ones (Biderman et al. 2024)."""
LARGEST = 1_000_000_000
"""Parameters up to which a report trains all of them: weights, gradients and AdamW's moments take 16 bytes each."""
CARD = "full.json"


def measure_full(name: str, bench: Bench, progress: Progress) -> Measurement:
    """The arm, trained now unless the same was trained before. Raises BaseModelError where the training diverges."""
    path, plan = bench.workspace.arms / name, _plan(bench)
    inputs = digest_json([plan.inputs, RATES])
    if not (path / CARD).exists() or read_json(path / CARD)["inputs"] != inputs:
        shutil.rmtree(path, ignore_errors=True)
        write_json(path / CARD, {"inputs": inputs} | _train(path, bench, plan, progress))
    card = read_json(path / CARD)
    progress.stage(f"measure {name}", 1)
    base = load_base(replace(plan.config.base, model=str(path), dtype=bench.library.base.dtype))
    trained = replace(bench, base=base)
    found = measured(
        name,
        Unrouted(base),
        trained,
        _costs(bench, card["tokens"]),
        learning_rate=card["learning_rate"],
        trained_tokens=card["tokens"],
    )
    progress.advance(1)
    return found


def _plan(bench: Bench) -> Plan:
    """That of `dense_active`, on the base in fp32."""
    plan = plan_of(bench, Training(active_rank))
    return replace(plan, config=replace(plan.config, base=replace(bench.library.base, quantization="none", dtype="float32")))


def _train(path: Path, bench: Bench, plan: Plan, progress: Progress) -> dict[str, object]:
    """A short training at each of RATES, judged on the tune split, then the whole one at the best."""
    peak = plan.config.experts.learning_rate
    short = plan.config.experts.epochs * SEARCH_SHARE / len(RATES)
    progress.stage("full fine-tuning: learning rate", len(RATES))
    found: dict[float, float] = {}
    for share in RATES:
        base = load_base(plan.config.base)
        _run(path / "search", base, plan, peak * share, None, short)
        scores = Unrouted(base).score(replace(bench, base=base).tune_examples)
        found[share] = float(np.exp(scores.nats.sum() / scores.tokens.sum()))
        progress.advance(1, f"×{share:g}: {found[share]:.2f}")
    shutil.rmtree(path / "search")
    best = min(found, key=lambda share: found[share])
    tokens = _run(path, load_base(plan.config.base), plan, peak * best, progress)
    return {"tokens": tokens, "learning_rate": peak * best, "rate_search": {f"{s:g}": v for s, v in found.items()}}


def _run(path: Path, base: Base, plan: Plan, rate: float, progress: Progress | None, epochs: float | None = None) -> int:
    """Train `base` in place on the dense adapter's rows and save it; returns the tokens that passed."""
    config = plan.config.experts
    examples = encode(plan.train.records, base, plan.config.data.template, config.max_tokens)
    job = Job(
        name=plan.names[0],
        examples=examples,
        settings=lora_settings(config, config.rank),
        learning_rate=rate,
        rows_per_step=plan.rows_per_step * config.rows_per_step,
        identity=[record.id for record in plan.train.records],
    )
    schedule = schedule_of(config)
    if epochs is not None:
        schedule = replace(schedule, epochs=epochs, steps=0)
    if progress is not None:
        progress.stage("full fine-tuning", sum(len(example.tokens) for example in examples) * schedule.epochs)
    return full_finetune(base, job, schedule, path, progress).tokens


def _costs(bench: Bench, tokens: int) -> Costs:
    """A model of its own in 16 bits; no adapter, no gate."""
    shape, length = bench.shape, float(bench.lengths.mean())
    running = costs.base_flops_per_token(shape, bench.context)
    each = costs.full_training_flops_per_token(
        shape, bench.context, bench.head_share, bench.config.experts.gradient_checkpointing
    )
    weights, kv = costs.weight_bytes(shape, 8 * BF16_BYTES), costs.kv_bytes_per_token(shape)
    return Costs(
        flops_per_token=running,
        active_flops_per_token=running,
        train_flops=each * tokens * (1 + SEARCH_SHARE),
        adapter_params=shape.params,
        active_adapter_params=shape.params,
        memory_bytes=costs.memory_bytes(weights, 0, kv, length),
        decode_bytes_per_token=costs.decode_bytes_per_token(weights, 0, kv, length),
    )
