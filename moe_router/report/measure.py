"""One arm measured: losses, speed, answers, costs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from moe_router.experts.base import Base
from moe_router.experts.library import Library
from moe_router.experts.scoring import Scores, score_examples
from moe_router.experts.train import SEARCH_SHARE
from moe_router.memory import NF4_BITS
from moe_router.report import costs
from moe_router.report.answers import Answers, Questions, answer
from moe_router.report.arms import ARMS, Arm, Costs
from moe_router.report.bench import Bench
from moe_router.report.mixes import Mix
from moe_router.report.pool import Pool
from moe_router.report.registry import one_rank, shared_rank


@dataclass(frozen=True, eq=False)
class Measurement:
    """An arm's row, and what the comparisons need beside it."""

    arm: Arm
    nats: np.ndarray  # (records,)
    mix: Mix
    answers: Answers | None = None


def measure_arm(name: str, pool: Pool, questions: Questions, tokens: np.ndarray) -> Measurement:
    """Mix, score and time arm `name` on the test records; let it answer where it is one that does.

    `tokens` (records,) are response tokens as the library's base counts them: an arm on another base is measured per token
    of the same text.
    """
    bench, kind = pool.bench, ARMS[name]
    mix = kind.mix(pool)
    start = time.perf_counter()
    scores = score_examples(pool.model, bench.examples, mix.weights, mix.shared)
    seconds = time.perf_counter() - start
    answers = answer(pool, mix, questions) if kind.answers and questions.chosen else None
    settings = bench.config.report
    arm = Arm.measured(
        name,
        scores.nats,
        tokens,
        costs_of(name, pool, mix),
        settings.bootstrap,
        settings.seed,
        bits_per_byte=bits_per_byte(scores, bench),
        tokens_per_second=float(bench.lengths.sum()) / seconds,
        **_training(name, pool),
        **({} if answers is None else answers.figures),
    )
    return Measurement(arm, scores.nats, mix, answers)


def bits_per_byte(scores: Scores, bench: Bench) -> float:
    """Σ nats / (ln 2 · Σ response bytes); the end-of-text token's loss counts, its bytes are none."""
    return float(scores.nats.sum() / np.log(2) / bench.response_bytes.sum())


def _training(name: str, pool: Pool) -> dict[str, object]:
    """What the arm's adapters saw; the base has none."""
    if name == "base":
        return {}
    found: dict[str, object] = {"trained_tokens": trained_tokens(pool)}
    if not ARMS[name].own:
        card = pool.library.cards[pool.library.names[0]]
        found |= {"rank": card["rank"], "learning_rate": card["learning_rate"]}
    return found


def trained_tokens(pool: Pool) -> int:
    """Tokens that the routed experts of a pool saw, prompts included."""
    return int(sum(pool.library.cards[name]["tokens"] for name in pool.library.names))


def costs_of(name: str, pool: Pool, mix: Mix) -> Costs:
    """FLOPs, bytes and parameters of an arm under its mixture."""
    bench, layout = pool.bench, pool.model.layout
    ranks = costs.active_ranks(mix.weights, mix.shared, layout.ranks, layout.shared_rank)
    per_rank = costs.adapter_params(bench.adapted, 1)
    running = costs.base_flops_per_token(bench.shape, bench.context) + _choosing_flops(bench, mix)
    held = 0 if name == "base" else layout.total * per_rank
    used = round(per_rank * float(ranks.mean()))
    weights = costs.weight_bytes(bench.shape, bits_of(bench.base, pool.library.base.quantization))
    kv, length = costs.kv_bytes_per_token(bench.shape), float(bench.lengths.mean())
    return Costs(
        flops_per_token=running + costs.adapter_flops_per_token(bench.adapted, costs.executed_rank(ranks, layout.total)),
        active_flops_per_token=running + costs.adapter_flops_per_token(bench.adapted, float(ranks.mean())),
        train_flops=0.0 if name == "base" else _train_flops(pool, mix),
        adapter_params=held,
        active_adapter_params=used,
        memory_bytes=costs.memory_bytes(weights, held, kv, length),
        decode_bytes_per_token=costs.decode_bytes_per_token(weights, used, kv, length),
    )


def bits_of(base: Base, quantization: str) -> float:
    """Bits that a linear layer's parameter takes in memory: a resident base is held in its compute type."""
    packed = quantization != "none" and not base.resident
    return NF4_BITS if packed else 8.0 * base.dtype.itemsize


def _choosing_flops(bench: Bench, mix: Mix) -> float:
    """Embedder and gate, spread over the tokens of prompt and answer; nothing for an arm that does not look at the query."""
    if not mix.compared:
        return 0.0
    seeing = bench.embedding_flops if mix.seeing_flops is None else mix.seeing_flops
    query = seeing + costs.gate_flops_per_query(bench.test.embeddings.shape[1], mix.compared)
    return costs.amortised_flops_per_token(query, float(bench.lengths.mean()))


def _train_flops(pool: Pool, mix: Mix) -> float:
    trained = pool.bench.library if pool.plan is None else pool.library
    return training_flops(pool.bench, trained, mix.measured_tokens, dense=pool.plan is not None and len(pool.plan.names) == 1)


def training_flops(bench: Bench, trained: Library, measured_tokens: int, dense: bool = False) -> float:
    """Training with its learning-rate search, the forward passes that settled how to choose, and embedding for the slices.

    `measured_tokens` were read to settle how to choose; a `dense` arm embeds nothing.
    """
    rank = shared_rank(trained) + one_rank(trained)
    recomputed = bench.config.experts.gradient_checkpointing
    each = costs.lora_training_flops_per_token(bench.shape, bench.context, rank, bench.head_share, bench.adapted, recomputed)
    searched = bool(trained.cards[trained.names[0]].get("rate_search"))
    read = costs.base_flops_per_token(bench.shape, bench.context, bench.head_share)
    read += costs.adapter_flops_per_token(bench.adapted, rank)
    embedded = 0 if dense else sum(len(split.records) for split in (bench.train, bench.gate, bench.tune))
    tokens = sum(int(trained.cards[name]["tokens"]) for name in trained.names)
    return each * tokens * (1 + SEARCH_SHARE * searched) + read * measured_tokens + bench.embedding_flops * embedded
