"""The inference engine on the CPU with the embedded base: rates, first token, and a load of many users.

    PYTHONPATH=tests python benchmarks/inference_cpu.py rates
    PYTHONPATH=tests python benchmarks/inference_cpu.py load [SECONDS] [USERS]
    PYTHONPATH=tests python benchmarks/inference_cpu.py kv WORKSPACE

`rates` measures decode tokens/s of the base and of routed rows, alone and in batches. In `load` every user asks one
question after the other of an expert that alone knows the answer's marker; 30 % cancel midway. `kv` measures what
`kv="reuse"` costs in perplexity, on the test records of a workspace with a trained library.
"""

from __future__ import annotations

import collections
import math
import random
import resource
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from markers import MARKERS, answer, marked_router, others, question, route_to

from moe_router.config import GenerationConfig
from moe_router.data.records import Message, Record, load_records
from moe_router.experts.encode import Example, encode
from moe_router.inference import EngineConfig, Route, Router
from moe_router.inference.engine import Engine, Request
from moe_router.inference.requests import GRAIN, Mixture
from moe_router.workspace import Workspace

STEPS = 60
CONTEXT = 64
"""Tokens that a row holds when its decode steps are timed."""


def step_seconds(engine: Engine, kinds: Sequence[Sequence[Mixture]]) -> list[float]:
    """Median seconds of a decode step over the rows of each kind, the kinds in turn so that others' load hits them alike."""
    times: list[list[float]] = [[] for _ in kinds]
    with torch.inference_mode():
        for step in range(STEPS):
            for mixtures, taken in zip(kinds, times, strict=True):
                rows = len(mixtures)
                start = time.perf_counter()
                engine.forward([[5]] * rows, [CONTEXT + step] * rows, 0, mixtures)
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def ask_rates(router: Router, repeats: int = 7) -> list[float]:
    """Tokens/s of whole answers without adapters and by one expert, in turn: the median answer of each."""
    settings = GenerationConfig(48)
    routes = [Route({}, 0.0, True, False), route_to(next(iter(MARKERS)))]
    found: list[list[float]] = [[] for _ in routes]
    for repeat in range(repeats):
        for route, rates in zip(routes, found, strict=True):
            start = time.perf_counter()
            answer = router.ask_many([f"Tell me of the sea, of ships and of the wind. {repeat}"], settings, [route])[0]
            rates.append(answer.usage.completion_tokens / (time.perf_counter() - start))
    return [statistics.median(rates) for rates in found]


def rates(router: Router) -> None:
    engine, count = router.engine, len(MARKERS)
    none: Mixture = (0,) * (count + 1)
    routed: list[Mixture] = [(*(GRAIN * (i == j) for j in range(count)), 0) for i in range(count)]
    print("rows  base tokens/s  routed tokens/s  routed/base")
    for rows in (1, 4, 16):
        base, ours = step_seconds(engine, [[none] * rows, [routed[i % count] for i in range(rows)]])
        print(f"{rows:4} {rows / base:14,.0f} {rows / ours:16,.0f} {base / ours:12.2f}")
    first = [router.ask(f"What is the code word? porto {i}").usage.first_seconds for i in range(20)]
    print(f"first token, warm, short prompt: median {statistics.median(first) * 1e3:.0f} ms, longest {max(first) * 1e3:.0f} ms")
    for layer in engine.model.layers.values():
        layer.B.data.mul_(1e-3)  # so that answers run on past the marker
    engine.refresh()
    base, ours = ask_rates(router)
    print(f"ask, whole answers: base {base:,.0f} tokens/s, routed {ours:,.0f}, {ours / base:.2f}")


def load(router: Router, seconds: float, users: int) -> None:
    """Raises SystemExit when an answer was lost or mixed up, or a slot did not come back."""
    counts, wrong = collections.Counter[str](), []
    until = time.monotonic() + seconds
    memory = [resident()]

    def user(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < until:
            name, cancels = draw.choice(list(MARKERS)), draw.random() < 0.3
            counts["asked"] += 1
            stream = router.stream(question(name, draw.randrange(150)), GenerationConfig(16), route_to(name))
            for _ in stream:
                if cancels:
                    stream.cancel()
            counts[stream.usage.finish] += 1
            counts["tokens"] += stream.usage.completion_tokens
            whole = stream.text == answer(name) or (cancels and answer(name).startswith(stream.text))
            if not whole or any(marker in stream.text for marker in others(name)):
                wrong.append((name, stream.text, stream.usage.finish))

    threads = [threading.Thread(target=user, args=(number,)) for number in range(users)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(10, max(1, seconds / 12)))
        memory.append(resident())
    router.engine.wait()
    stats = router.engine.stats
    print(f"{users} users, {seconds:.0f} s: {dict(counts)}; {stats.tokens:,} tokens read in {stats.passes:,} passes")
    print(f"resident MiB: {' '.join(f'{m:.0f}' for m in memory)} (peak {peak():.0f})")
    ended = sum(counts[finish] for finish in ("stop", "length", "error", "cancelled"))
    if wrong or ended != counts["asked"] or router.engine.free != router.engine.cache.slots:
        raise SystemExit(f"{len(wrong)} wrong, {counts['asked'] - ended} lost, {router.engine.free} slots free: {wrong[:5]}")
    print("none lost, none mixed up, every slot came back")


def kept_history(router: Router, workspace: Path, pairs: int = 60) -> None:
    """Perplexity of test answers after a turn on something else, its keys made by their own or by that turn's mixture."""
    records = [r for r in load_records(Workspace.find(workspace).records) if r.split == "test" and not r.history]
    records = random.Random(0).sample(records, min(2 * pairs, len(records)))
    nats, tokens, changed = collections.Counter[str](), 0, 0
    for before, now in zip(records[::2], records[1::2], strict=False):
        history = (*before.messages, Message("assistant", before.response))
        old, new = (_mixture(router, messages) for messages in (before.messages, (*history, *now.messages)))
        if old == new:
            continue
        example = encode([Record("", now.prompt, now.response, history)], router.engine.base, router.library.template)[0]
        start = len(router.prompt_tokens(history)) - len(router.prompt_tokens(()))
        changed, tokens = changed + 1, tokens + example.target_tokens
        nats["recompute"] += _nats(router.engine, example, start, new, new)
        nats["reuse"] += _nats(router.engine, example, start, old, new)
    shown = ", ".join(f"{kv} {math.exp(total / tokens):.4f}" for kv, total in nats.items())
    print(f"{changed} second turns with another mixture, {tokens} answer tokens, perplexity: {shown}")


def _mixture(router: Router, messages: Sequence[Message]) -> Mixture:
    found = router.route([messages])[0]
    return Request((), found.vector(router.names), found.shared).mixture


@torch.inference_mode()
def _nats(engine: Engine, example: Example, history: int, old: Mixture, new: Mixture) -> float:
    """Of the answer, the first `history` tokens read with the mixture `old`, the rest with `new`."""
    engine.forward([example.tokens[:history]], [0], 0, [old])
    at, total = history, 0.0
    for end in range(example.prompt_tokens, len(example.tokens)):
        logits = engine.forward([example.tokens[at:end]], [at], 0, [new])
        total -= float(logits[0].log_softmax(-1)[example.tokens[end]])
        at = end
    return total


def resident() -> float:
    """MiB that the process holds now, as Linux counts it."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 2**20


def peak() -> float:
    """MiB that the process has held at most, as Linux counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(what: str = "rates", where: str = "120", users: str = "200") -> None:
    if what == "kv":
        kept_history(Router.load(Path(where) / "experts"), Path(where))
    elif what == "load":
        load(marked_router(EngineConfig()), float(where), int(users))
    else:
        rates(marked_router(EngineConfig()))


if __name__ == "__main__":
    main(*sys.argv[1:])
