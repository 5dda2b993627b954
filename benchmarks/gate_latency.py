"""How long the gate takes: one query with and without its embedder, and batches.

    python benchmarks/gate_latency.py [--threads 2] [--repeats 200]

The gate is of full size, as `train-gate` makes it from many records: REMEMBERED prototypes, eight experts of POCKETS pockets
each. Its directions are drawn at random, which changes no time; the embedder and the questions are real. Wanted on two cores:
one query in 15 ms with the embedder and in less than 1 ms without (medians), and batches at 300 queries a second. Where other
programs compute as well, the processor time says what a quiet machine would take at most.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

EXPERTS = 8
BATCH = 256
QUESTIONS = (
    "How many days do I have to return a rug that I bought online?",
    "Who signs off travel advances of more than two thousand euros?",
    "Como é que peço a segunda via de uma fatura?",
    "My parcel says delivered but it is not here, what now?",
    "Which form do I need for a warranty claim on an oven?",
    "When does payroll close in December?",
)


def spent(call: Callable[[int], object], repeats: int) -> tuple[list[float], float]:
    """Milliseconds of each call, and of processor time on average, after a tenth as many calls to warm up."""
    for i in range(max(3, repeats // 10)):
        call(i)
    found, busy = [], time.process_time()
    for i in range(repeats):
        start = time.perf_counter()
        call(i)
        found.append(1e3 * (time.perf_counter() - start))
    return found, 1e3 * (time.process_time() - busy) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=200)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(given.threads)  # read when numpy loads

    import numpy as np
    import torch

    from moe_router.data.embed import load_embedder
    from moe_router.gate.features import POCKETS, REMEMBERED, Memory
    from moe_router.gate.gate import Gate
    from moe_router.inference.routing import Selector

    torch.set_num_threads(given.threads)
    embedder, random = load_embedder(), np.random.default_rng(0)
    directions = random.normal(size=(REMEMBERED, embedder.dimension)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    pockets = np.repeat(np.arange(EXPERTS), POCKETS)
    coefficients = random.normal(size=(REMEMBERED, len(pockets))).astype(np.float32)
    gate = Gate(
        names=tuple(f"expert-{i}" for i in range(EXPERTS)),
        library_digest="",
        embedder=embedder.id,
        mode="top2",
        abstain_to="shared",
        weight=random.normal(size=(EXPERTS, embedder.dimension)).astype(np.float32),
        bias=np.zeros(EXPERTS, dtype=np.float32),
        evidence_scale=1.0,
        memory=Memory(directions, np.arange(REMEMBERED) % EXPERTS, coefficients, pockets),
        mixing_temperature=1.0,
        confidence_temperature=1.0,
        threshold=-1.0,
    )
    selector = Selector(gate, embedder, has_shared=True)
    asked = [f"{QUESTIONS[i % len(QUESTIONS)]} ({i})" for i in range(max(given.repeats, BATCH))]
    vectors = embedder.encode(asked[:BATCH])

    whole, alone, batches = (
        spent(lambda i: selector.route([asked[i]]), given.repeats),
        spent(lambda i: gate.decide(vectors[i % BATCH : i % BATCH + 1]), given.repeats),
        spent(lambda _: selector.route(asked[:BATCH]), 3),
    )
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"{given.threads} threads, {REMEMBERED:,} prototypes, {len(pockets)} pockets, load {load}")
    for name, (times, busy) in (("embedder included", whole), ("embedded already", alone)):
        p50, p95 = np.quantile(times, [0.5, 0.95])
        print(f"one query, {name}: p50 {p50:.2f} ms, p95 {p95:.2f} ms, processor {busy:.2f} ms")
    times, busy = batches
    each = 1e3 * BATCH
    print(f"batches of {BATCH}: {each / np.median(times):.0f} queries/s, {each / busy:.0f} a processor second")


if __name__ == "__main__":
    main()
