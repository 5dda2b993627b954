"""Training speed on one GPU: eight experts in one pass against PEFT with transformers, over Llama-2-7B's shape in NF4.

    PYTHONPATH=. python benchmarks/train.py [--seconds 240] [--out train.jsonl] [--compile]
    PYTHONPATH=. python benchmarks/train.py --tiny --device cpu          # the same code path on any machine

Random weights, NF4 with double quantisation, bf16, rank 16 on all linear layers, 8 x 512 tokens a step for everybody: eight
experts with a row each, or one PEFT adapter with eight rows. Half of the tokens have a loss. PEFT as its users run it: its
default (fp32 adapters), with bf16 autocast, with bf16 adapters, and as its guide says (prepare_model_for_kbit_training).
Ours first as it is, then with one lever after the other. Every case prints a line of JSON when it is measured, and a table
ends the run; a case that fails, out of memory for one, prints its error and the others go on.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from memory_gpu import GIB, random_base
from torch import nn

from moe_router import kernels
from moe_router.experts import bnb
from moe_router.experts.base import Base
from moe_router.experts.encode import Example, collate
from moe_router.experts.peft_format import LoraSettings
from moe_router.experts.schedule import Job, Schedule
from moe_router.experts.trainer import Trainer
from moe_router.kernels import plain_training
from moe_router.memory import LLAMA, Shape

EXPERTS, RANK = 8, 16
PEFT_DEFAULT = "PEFT, default"


@dataclass(frozen=True)
class Size:
    """What is measured and how often: blocks of steps, after a warm-up."""

    shape: Shape
    tokens: int
    warm: int = 2
    blocks: int = 3
    steps: int = 2


FULL = Size(LLAMA[0], 512)
TINY = Size(Shape("tiny", width=256, layers=2, mlp_width=688, vocabulary=2048), 32, warm=1, blocks=2, steps=1)


@dataclass
class Report:
    """Prints cases as they come, keeps them for the table, and stops starting new ones when the time is up."""

    device: torch.device
    size: Size
    until: float
    out: Path | None
    limit: float = 0.0
    """Tokens/s of four FLOPs per weight and token at the measured rate of a large product."""
    lines: list[dict[str, Any]] = field(default_factory=list)

    def say(self, **line: Any) -> None:
        self.lines.append(line)
        print(json.dumps(line), flush=True)
        if self.out:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    @contextlib.contextmanager
    def case(self, name: str, **about: Any) -> Iterator[None]:
        """Whatever fails inside is a line of its own, and the run goes on."""
        try:
            if time.monotonic() > self.until:
                raise TimeoutError("the time is up")
            yield
        except Exception as error:  # noqa: BLE001 - the other cases are worth having
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = (str(error).strip().splitlines() or [""])[0]
            self.say(case=name, **about, error=f"{type(error).__name__}: {reason} ({where.name}:{where.lineno})")
        free(self.device)

    def measure(self, name: str, step: Callable[[], Any], after: Callable[[], dict[str, Any]], **about: Any) -> None:
        """Tokens/s: the median over blocks of steps; the device is waited for only between blocks. `after` adds to the line."""
        for _ in range(self.size.warm):
            step()
        clear_peak(self.device)
        times = []
        for _ in range(self.size.blocks):
            start = time.perf_counter()
            for _ in range(self.size.steps):
                step()
            synchronize(self.device)
            times.append((time.perf_counter() - start) / self.size.steps)
            if time.monotonic() > self.until:
                break
        seconds = statistics.median(times)
        rate = EXPERTS * self.size.tokens / seconds
        self.say(
            case=name, **about, tokens_per_s=round(rate, 1), ms_per_step=round(1e3 * seconds, 1),
            slowest_ms=round(1e3 * max(times), 1), peak_gib=round(peak(self.device), 2),
            of_limit=round(rate / self.limit, 4), **after(),
        )  # fmt: skip

    def table(self) -> None:
        """Every rate, against PEFT's default and PEFT's best with the same recomputation."""
        rates = [line for line in self.lines if "tokens_per_s" in line]
        theirs = [r for r in rates if r["case"].startswith("PEFT")]
        print(f"\nlimit without recomputation: {self.limit:,.0f} tokens/s")
        print(
            f"{'case':44} {'recompute':>9} {'tokens/s':>9} {'ms/step':>8} {'GiB':>6} {'of limit':>8} {'x default':>9}"
            f" {'x best':>7} {'x its GiB':>9}"
        )
        for r in rates:
            default = next((p for p in theirs if p["case"] == PEFT_DEFAULT and p["recompute"]), None)
            best = max((p for p in theirs if p["recompute"]), key=lambda p: p["tokens_per_s"], default=None)
            ratio = lambda key, other, r=r: f"{r[key] / other[key]:.2f}" if other and other[key] else "-"  # noqa: E731
            print(
                f"{r['case']:44} {'yes' if r['recompute'] else 'no':>9} {r['tokens_per_s']:9,.0f} {r['ms_per_step']:8.1f}"
                f" {r['peak_gib']:6.1f} {r['of_limit']:8.1%} {ratio('tokens_per_s', default):>9}"
                f" {ratio('tokens_per_s', best):>7} {ratio('peak_gib', default):>9}"
            )
        print("x default, x best and x its GiB: against PEFT with recomputation, its default and its fastest kind")


def gemm_rate(device: torch.device, size: int) -> float:
    """FLOP/s of a square bf16 product: the median of several, after a warm-up."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(12):
        start = time.perf_counter()
        one @ other
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times[2:])


def examples(size: Size, count: int, seed: int) -> list[Example]:
    """Random records that fill a row each; half of their tokens are response."""
    draw = np.random.default_rng(seed)
    rows = draw.integers(2, size.shape.vocabulary, (count, size.tokens)).tolist()
    return [Example(tuple(row), size.tokens // 2) for row in rows]


class Theirs:
    """PEFT on transformers: one adapter on all linear layers, AdamW, clipping, and transformers' own checkpointing."""

    def __init__(self, base: Base, size: Size, half: bool, cast: bool, guide: bool, recompute: bool) -> None:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        self.base, self.cast, self.restored = base, cast, {}
        base.model.is_loaded_in_4bit = not base.resident  # as from_pretrained leaves it: PEFT then takes its 4-bit layers
        if guide:
            self.restored = {name: p.dtype for name, p in base.model.named_parameters() if p.is_floating_point()}
            prepare_model_for_kbit_training(base.model, use_gradient_checkpointing=False)
        targets = sorted({path.rpartition(".")[2] for path in base.linears()})
        settings = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.0)
        self.model = get_peft_model(base.model, settings)
        if half:
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)
        self.model.train()
        if recompute:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        rows = [[example] for example in examples(size, EXPERTS, 0)]
        batch = collate(rows, base.eos, base.device)
        # transformers shifts labels by itself
        labels = [[-100] * e.prompt_tokens + list(e.tokens[e.prompt_tokens :]) for (e,) in rows]
        self.inputs = {"input_ids": batch.tokens, "labels": torch.tensor(labels, device=base.device)}
        self.loss = torch.zeros(())

    def step(self) -> None:
        with torch.autocast(self.base.device.type, torch.bfloat16) if self.cast else contextlib.nullcontext():
            loss = self.model(**self.inputs, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.loss = loss.detach()

    def undo(self) -> None:
        """Give the base its own layers, types and mode back."""
        self.model.gradient_checkpointing_disable()
        self.model.unload()
        for name, parameter in self.base.model.named_parameters():
            if name in self.restored:
                parameter.data = parameter.data.to(self.restored[name])
        self.base.model.eval().requires_grad_(False)


def measure_theirs(report: Report, base: Base, kinds: Sequence[str], recompute: bool, **about: Any) -> None:
    options = {
        PEFT_DEFAULT: (False, False, False),
        "PEFT, autocast": (False, True, False),
        "PEFT, bf16 adapters": (True, False, False),
        "PEFT, as its guide": (False, True, True),
    }
    for name in kinds:
        with report.case(name, recompute=recompute, **about):
            theirs = Theirs(base, report.size, *options[name], recompute)
            try:
                after = lambda theirs=theirs: {"loss": round(float(theirs.loss), 3)}  # noqa: E731
                report.measure(name, theirs.step, after, recompute=recompute, **about)
            finally:
                theirs.undo()
                del theirs


def make_trainer(base: Base, size: Size, recompute: bool, optimizer: str = "adamw") -> Trainer:
    """Ours: an expert for every row. B begins small but not at zero, so that every gradient is one."""
    schedule = Schedule(steps=10_000, row_tokens=size.tokens, optimizer=optimizer, recompute=recompute, decay="constant")
    jobs = [Job(f"e{index}", examples(size, 4, index), LoraSettings(RANK, RANK, False), 1e-4) for index in range(EXPERTS)]
    trainer = Trainer(base, jobs, schedule)
    draw = torch.Generator(base.device).manual_seed(0)
    for layer in trainer.model.layers.values():
        layer.B.data[:-1].normal_(0, 1e-3, generator=draw)
    return trainer


@contextlib.contextmanager
def trained(base: Base, size: Size, recompute: bool, optimizer: str = "adamw") -> Iterator[Trainer]:
    """A trainer whose adapters are taken off at the end."""
    trainer = make_trainer(base, size, recompute, optimizer)
    with trainer.model:
        yield trainer
    trainer.optimisers.clear()
    trainer.parameters.clear()
    for layer in trainer.model.layers.values():
        layer.A = layer.B = layer.base = None


def gradients(trainer: Trainer) -> tuple[torch.Tensor, float]:
    """Of the factors of every eighth layer for one fixed batch, with its loss."""
    rows = [[job.examples[0]] for job in trainer.jobs]
    owners = np.arange(len(rows))
    targets = {i: row[0].target_tokens for i, row in enumerate(rows)}
    nats = trainer._pass_rows(rows, owners, trainer._route(owners, owners.tolist(), trainer.form), targets)
    chosen = list(trainer.model.layers.values())[::8]
    found = torch.cat([factor.grad.flatten() for layer in chosen for factor in (layer.A, layer.B)])
    trainer._drop_gradients()
    return found, sum(nats.values()) / sum(targets.values())


def measure_ours(
    report: Report, trainer: Trainer, name: str, form: str, ops: Any = None, keep: bool = True, **about: Any
) -> None:
    """One combination of levers, with the distance of its gradients from the plain form's."""
    recompute = trainer.schedule.recompute
    with report.case(name, recompute=recompute, **about):
        trainer.form, trainer.ops = "gathered", None
        expected, _ = gradients(trainer)
        trainer.form, trainer.ops = form, ops
        route = trainer._route
        if not keep:
            trainer._route = lambda *a: forgetful(route(*a))
        try:
            found, loss = gradients(trainer)
            distance = float((found - expected).norm() / expected.norm())
            del found, expected
            extra = {"gradient_distance": float(f"{distance:.3g}"), "loss": round(loss, 3)}
            failed = lambda: {"failed": [o.failed for o in trainer.outcomes.values() if o.failed]}  # noqa: E731
            report.measure(name, trainer.train_step, failed, recompute=recompute, **about, **extra)
        finally:
            trainer._drop_gradients()
            vars(trainer).pop("_route", None)


def forgetful(route: Any) -> Any:
    """Without holding dequantised weights from the recomputed forward to the backward product."""
    route.keep = False
    return route


def compiled() -> SimpleNamespace:
    """The plain elementwise operations, fused by torch.compile."""
    return SimpleNamespace(
        **{name: torch.compile(getattr(plain_training, name), dynamic=True) for name in plain_training.__all__}
    )


def profile(step: Callable[[], Any], longest: int = 30) -> None:
    """Which kernels a step spends its time in."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        step()
    events = [e for e in found.key_averages() if e.self_device_time_total]
    total = sum(e.self_device_time_total for e in events)
    print(f"two steps: {total / 1e3:.0f} ms in kernels")
    for event in sorted(events, key=lambda e: -e.self_device_time_total)[:longest]:
        print(f"{event.self_device_time_total / 1e3:9.1f} ms {event.count:6} x {event.key[:90]}")


def run(report: Report, with_compile: bool, profiled: bool) -> None:
    size, device = report.size, report.device
    rate = gemm_rate(device, 8192 if device.type == "cuda" else 512)
    report.limit = rate / (4 * size.shape.params)
    start = time.monotonic()
    base = random_base(size.shape, torch.bfloat16, device)
    report.say(
        case="set-up", device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu", torch=torch.__version__,
        gemm_tflops=round(rate / 1e12, 1), limit_tokens_per_s=round(report.limit, 1),
        seconds=round(time.monotonic() - start, 1),
    )  # fmt: skip
    ops, kind = kernels.for_training(device), "fused"
    if ops is None:
        ops, kind = plain_training, "plain operations"
    kinds = [PEFT_DEFAULT, "PEFT, autocast", "PEFT, bf16 adapters", "PEFT, as its guide"]
    nf4, resident = {"weights": "nf4"}, {"weights": "resident"}
    best = f"ours, together, {kind}"
    measure_theirs(report, base, kinds, True, **nf4)
    with report.case("ours"), trained(base, size, True) as trainer:
        free(device)
        measure_ours(report, trainer, "ours, gathered", "gathered", **nf4)
        measure_ours(report, trainer, "ours, together", "together", **nf4)
        measure_ours(report, trainer, best, "together", ops, **nf4)
        if profiled:
            profile(trainer.train_step)
        trainer.schedule = replace(trainer.schedule, recompute=False)
        measure_ours(report, trainer, best, "together", ops, **nf4)
        trainer.schedule = replace(trainer.schedule, recompute=True)
        measure_ours(report, trainer, f"{best}, dequantised again", "together", ops, keep=False, **nf4)
        measure_ours(report, trainer, f"ours, gathered, {kind}", "gathered", ops, **nf4)
        if with_compile:
            measure_ours(report, trainer, "ours, together, compiled", "together", compiled(), **nf4)
    with report.case("ours, paged"), trained(base, size, True, "paged_adamw_8bit") as trainer:
        free(device)
        measure_ours(report, trainer, f"{best}, paged 8-bit AdamW", "together", ops, **nf4)
    rates = {r["case"]: r["tokens_per_s"] for r in report.lines if r.get("tokens_per_s") and r["case"] in kinds}
    measure_theirs(report, base, sorted(rates, key=rates.__getitem__)[-1:], False, **nf4)
    with report.case("ours, resident"):
        bnb.make_resident(base.model, torch.bfloat16)
        base = replace(base, resident=True)
    with report.case("ours, resident", recompute=False), trained(base, size, False) as trainer:
        free(device)
        measure_ours(report, trainer, f"{best}, resident", "together", ops, **resident)
        trainer.schedule = replace(trainer.schedule, recompute=True)
        measure_ours(report, trainer, f"{best}, resident", "together", ops, **resident)
    measure_theirs(report, base, sorted(rates, key=rates.__getitem__)[-1:], False, **resident)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def clear_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def peak(device: torch.device) -> float:
    """GiB allocated at most since `clear_peak`; 0 without CUDA."""
    return torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else 0.0


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=240.0, help="start no further case after this time")
    parser.add_argument("--out", type=Path, help="append every line of JSON to this file too")
    parser.add_argument("--tiny", action="store_true", help="a small shape")
    parser.add_argument("--compile", action="store_true", help="also the elementwise operations under torch.compile")
    parser.add_argument("--profile", action="store_true", help="also the kernels of two steps of ours")
    options = parser.parse_args()
    size = TINY if options.tiny else FULL
    report = Report(torch.device(options.device), size, time.monotonic() + options.seconds, options.out)
    try:
        run(report, options.compile, options.profile)
    finally:
        report.table()


if __name__ == "__main__":
    main()
