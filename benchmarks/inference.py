"""Routed inference on one GPU against its rivals: the Llama-2-7B shape with random weights, made on the device.

    PYTHONPATH=. python benchmarks/inference.py [--weights nf4|resident|both] [--seconds 240] [--tiny]

NF4 with double quantisation, bf16, experts of rank 16 on all linear layers, a different one in every row. `resident` holds
the dequantised weights in bf16. `--tiny` is a small shape for a machine without a GPU. First what must be equal is compared,
then every case prints a line of JSON as soon as it is measured (median of its repeats), and a table ends the run. A case
that fails prints its error and the others go on; `--seconds` ends the run early.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

from moe_router import kernels
from moe_router.config import GenerationConfig
from moe_router.experts import bnb
from moe_router.experts.adapters import RankLayout, RoutedModel
from moe_router.experts.base import EMBEDDED_PATH, Base
from moe_router.inference.cache import CacheShape, SlotCache
from moe_router.inference.engine import Engine, EngineConfig, Request
from moe_router.inference.forward import EagerForward, Forward
from moe_router.inference.fused import unfuse
from moe_router.inference.graphs import GraphForward
from moe_router.inference.requests import GRAIN, Mixture

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RANK = 16
PROMPT = 16
"""Tokens that a row has read before it decodes."""


@dataclass(frozen=True)
class Shape:
    """What is measured: the model's size, the batches and how often."""

    config: LlamaConfig
    slots: int = 32
    prefill: tuple[int, int] = (8, 512)
    """Rows and tokens."""
    steps: int = 24
    """Decode steps of one repeat."""
    repeats: int = 5
    many: int = 64
    """Experts in the growth cases."""


def llama_2_7b() -> Shape:
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Shape(config)


def tiny() -> Shape:
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Shape(config, 4, (3, 40), 3, 2, 12)


@dataclass
class Report:
    """Prints cases as they come and keeps them for the table."""

    until: float
    lines: list[dict[str, Any]] = field(default_factory=list)

    def say(self, **line: Any) -> None:
        self.lines.append(line)
        print(json.dumps(line), flush=True)

    @contextlib.contextmanager
    def case(self, name: str, **about: Any) -> Iterator[None]:
        """An error inside is a line of its own, and the run goes on. Raises TimeoutError when the time is up."""
        if time.monotonic() > self.until:
            raise TimeoutError
        try:
            yield
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 - the other cases are worth having
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = (str(error).strip().splitlines() or [""])[0]
            self.say(case=name, **about, error=f"{type(error).__name__}: {reason} ({where.name}:{where.lineno})")

    def rate(self, name: str, tokens: int, work: Callable[[], None], repeats: int, steps: int = 1, **about: Any) -> None:
        """Tokens/s of `work`, which reads `tokens` in `steps` equal steps: the median of `repeats` after one warm-up."""
        with self.case(name, **about):
            clear_peak()
            work()
            times = []
            for _ in range(repeats):
                synchronize()
                start = time.perf_counter()
                work()
                synchronize()
                times.append(time.perf_counter() - start)
                if time.monotonic() > self.until:
                    break
            middle = statistics.median(times)
            self.say(
                case=name,
                **about,
                tokens_per_s=round(tokens / middle, 1),
                ms_per_step=round(1e3 * middle / steps, 3),
                slowest_ms=round(1e3 * max(times) / steps, 3),
                repeats=len(times),
                peak_gib=peak(),
            )

    def table(self) -> None:
        """Every rate, and its share of our own engine's base on the same weights in the same situation."""
        rates = [line for line in self.lines if "tokens_per_s" in line]
        own = {(r["weights"], r["what"]): r["tokens_per_s"] for r in rates if r["case"] == "ours, base"}
        print(f"\n{'case':34} {'weights':9} {'what':18} {'tokens/s':>10} {'ms/step':>9} {'of own base':>12} {'GiB':>6}")
        for r in rates:
            share = r["tokens_per_s"] / own[key] if (key := (r["weights"], r["what"])) in own else math.nan
            print(
                f"{r['case']:34} {r['weights']:9} {r['what']:18} {r['tokens_per_s']:10,.1f} {r['ms_per_step']:9.2f}"
                f" {share:12.1%} {r['peak_gib']:6.1f}"
            )


def make_plain(config: LlamaConfig, dtype: torch.dtype) -> nn.Module:
    """Random weights, on the device from the start."""
    torch.set_default_dtype(dtype)
    with torch.device(DEVICE):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


def make_model(shape: Shape) -> nn.Module:
    """The shape in NF4 with double quantisation."""
    model = make_plain(shape.config, torch.bfloat16)
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(model.modules()):
        for name, linear in list(parent.named_children()):
            if not isinstance(linear, nn.Linear) or linear is model.lm_head:
                continue
            small = Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
                device="meta",
            )
            small.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=small)
            setattr(parent, name, small.to(DEVICE))
    bnb.keep_differentiable(model)
    return model.eval().requires_grad_(False)


def make_base(model: nn.Module, resident: bool, dtype: torch.dtype = torch.bfloat16) -> Base:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_PATH)
    return Base(model, tokenizer, "random", "random", dtype, resident)


def attach(base: Base, experts: int, rank: int = RANK) -> RoutedModel:
    """Experts of random factors, large enough to move the logits; the same for the same number."""
    names = tuple(f"e{i}" for i in range(experts))
    model = RoutedModel(base, RankLayout(names, (rank,) * experts), dict.fromkeys(names, 1.0))
    draw = torch.Generator(DEVICE).manual_seed(experts)
    for layer in model.layers.values():
        for factor, size in ((layer.A, layer.A.shape[1] ** -0.5), (layer.B, 0.02)):
            new = torch.randn(factor[:-1].shape, generator=draw, device=DEVICE)
            factor.data[:-1] = (new * size).to(factor.dtype)
    return model


def one_hot(model: RoutedModel, rows: int) -> list[Mixture]:
    """A different expert in every row, in turn."""
    count = len(model.layout.names)
    return [(*(GRAIN * (i % count == j) for j in range(count)), 0) for i in range(rows)]


def nothing(model: RoutedModel, rows: int) -> list[Mixture]:
    return [(0,) * (len(model.layout.names) + 1)] * rows


def prompts(shape: Shape, rows: int, length: int) -> list[list[int]]:
    draw = np.random.default_rng(rows * length)
    return draw.integers(2, shape.config.vocab_size, (rows, length)).tolist()


class Ours:
    """The engine's forward pass without its threads, and the passes that are measured."""

    def __init__(self, shape: Shape, model: RoutedModel, form: str = "auto", fused: bool = True) -> None:
        self.shape, self.model = shape, model
        unfuse(model.base.model)
        self.longest = max(shape.prefill[1], PROMPT + shape.steps) + 1
        self.cache = SlotCache(CacheShape.of(model.base), shape.slots, self.longest, DEVICE)
        self.eager = EagerForward(model, self.cache, form, None if fused else kernels.plain)
        self.graphs = GraphForward(self.eager) if DEVICE.type == "cuda" else GraphForward(self.eager, lambda step: step)

    def read(self, rows: int, mixtures: Sequence[Mixture]) -> torch.Tensor:
        """Prompts into the cache; the logits that follow."""
        return self.eager(prompts(self.shape, rows, PROMPT), [0] * rows, 0, mixtures)

    def decode(self, forward: Forward, rows: int, mixtures: Sequence[Mixture]) -> Callable[[], None]:
        """A repeat of greedy steps, each token back on the host as the engine needs it."""

        def work() -> None:
            tokens = [5] * rows
            for step in range(self.shape.steps):
                logits = forward([[token] for token in tokens], [PROMPT + step] * rows, 0, mixtures)
                tokens = logits.argmax(-1).tolist()

        return work

    def prefill(self, mixtures: Sequence[Mixture]) -> Callable[[], None]:
        rows, length = self.shape.prefill
        chunks = prompts(self.shape, rows, length)
        return lambda: self.eager(chunks, [0] * rows, 0, mixtures).argmax(-1).tolist() and None


def measure_ours(
    report: Report, shape: Shape, base: Base, experts: int, weights: str, form: str = "auto", fused: bool = True
) -> None:
    """Decode and prefill of our engine, with every row routed to an expert of its own; its base too where form is auto."""
    with attach(base, experts) as model:
        ours = Ours(shape, model, form, fused)
        after = ("" if form == "auto" else f", {form}") + ("" if fused else ", plain kernels")
        kinds = [(f"ours, {experts} experts{after}", one_hot)]
        if form == "auto" and experts == 8:
            kinds.insert(0, (f"ours, base{after}", nothing))
        for name, mixtures in kinds:
            for rows in (1, shape.slots):
                work = ours.decode(ours.graphs, rows, mixtures(model, rows))
                about = {"weights": weights, "what": f"decode b{rows}"}
                report.rate(name, rows * shape.steps, work, shape.repeats, shape.steps, **about)
                if len(kinds) == 2 and fused:
                    work = ours.decode(ours.eager, rows, mixtures(model, rows))
                    report.rate(f"{name}, eager", rows * shape.steps, work, 1, shape.steps, **about)
            rows, length = shape.prefill
            work = ours.prefill(mixtures(model, rows))
            report.rate(name, rows * length, work, shape.repeats, weights=weights, what=f"prefill {rows}x{length}")
        report.say(case="graphs captured", weights=weights, of=kinds[-1][0], count=len(ours.graphs), error=ours.graphs.failure)
        if len(kinds) == 2 and fused:
            measure_engine(report, shape, model, weights)
    unfuse(base.model)


def measure_engine(report: Report, shape: Shape, model: RoutedModel, weights: str) -> None:
    """Whole answers through the engine with its threads, scheduling, sampling and text."""
    engine = Engine(model, EngineConfig(shape.slots, PROMPT + shape.steps + 9, prefix_bytes=0, kernels=True))
    for rows in (1, shape.slots):
        experts = len(model.layout.names)
        requests = [
            Request(prompt, np.eye(experts)[i % experts], False, GenerationConfig(max_new_tokens=shape.steps))
            for i, prompt in enumerate(prompts(shape, rows, PROMPT))
        ]
        work = lambda requests=requests: [None for _ in engine.start(requests)] and None  # noqa: E731
        report.rate(
            "ours, whole engine", rows * shape.steps, work, shape.repeats, shape.steps, weights=weights, what=f"decode b{rows}"
        )
    engine.wait()


def check_ours(report: Report, shape: Shape, base: Base, weights: str) -> torch.Tensor:
    """g = 0 equals the base, a replayed step equals the eager one; the one-hot logits, for the comparison with PEFT."""
    rows = min(8, shape.slots)
    tokens = torch.tensor(prompts(shape, rows, PROMPT), device=DEVICE)
    plain = base.model(input_ids=tokens).logits[:, -1].float()
    with attach(base, 8) as model:
        ours = Ours(shape, model)
        zero, routed = ours.read(rows, nothing(model, rows)), ours.read(rows, one_hot(model, rows))
        mixed = [*one_hot(model, rows - 1), nothing(model, 1)[0]]
        report.say(
            case="correctness",
            weights=weights,
            no_adapter_against_transformers=relative(zero, plain),
            row_without_adapter_in_routed_batch=relative(ours.read(rows, mixed)[-1:], zero[-1:]),
            adapters_move_logits_by=relative(routed, zero),
            wide_against_gathered=relative(*(Ours(shape, model, form).read(rows, mixed) for form in ("wide", "gathered"))),
            fused_against_plain=relative(*(Ours(shape, model, "auto", fused).read(rows, mixed) for fused in (True, False))),
        )
        for form, fused in (("wide", True), ("gathered", True), ("gathered", False)):
            both = Ours(shape, model, form, fused)
            both.read(rows, mixed)
            one, other = (forward([[7]] * rows, [PROMPT] * rows, 0, mixed) for forward in (both.graphs, both.eager))
            report.say(
                case="graph against eager",
                weights=weights,
                form=form,
                kernels="fused" if fused and both.eager.groups.kernels.FUSED else "plain",
                relative=relative(one, other),
                greedy_agree=float((one.argmax(-1) == other.argmax(-1)).float().mean()),
                failure=both.graphs.failure,
            )
    unfuse(base.model)
    return routed


def check_exact(report: Report, shape: Shape) -> None:
    """Two layers of the shape in fp32, where rounding hides nothing: prompts and one step against PEFT and the base alone."""
    config = LlamaConfig(**{**shape.config.to_diff_dict(), "num_hidden_layers": 2})
    base = make_base(make_plain(config, torch.float32), False, torch.float32)
    rows = min(8, shape.slots)
    ids = torch.tensor(prompts(shape, rows, PROMPT), device=DEVICE)
    found = {}
    with attach(base, 8) as model:
        for form in ("gathered", "wide"):
            ours = Ours(shape, model, form)
            mixed = [*one_hot(model, rows - 1), nothing(model, 1)[0]]
            found[form] = (ours.read(rows, mixed), ours.graphs([[7]] * rows, [PROMPT] * rows, 0, mixed))
    unfuse(base.model)
    longer = torch.cat([ids, torch.full((rows, 1), 7, device=DEVICE)], 1)
    alone = [base.model(input_ids=tokens).logits[-1:, -1] for tokens in (ids, longer)]
    peft = Peft(base, 8, False)
    theirs = [peft.model(input_ids=tokens, **peft.rows(rows)).logits[:-1, -1] for tokens in (ids, longer)]
    peft.unload()
    for form, ours in found.items():
        report.say(
            case="fp32, two layers",
            form=form,
            one_hot_against_peft=[relative(one[:-1], other) for one, other in zip(ours, theirs, strict=True)],
            no_adapter_against_base=[relative(one[-1:], other) for one, other in zip(ours, alone, strict=True)],
        )


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(f"{float((found - expected).norm() / expected.norm()):.3g}")


class Peft:
    """PEFT on the same base with the same factors; `half` casts its adapters to bf16, its default keeps fp32."""

    def __init__(self, base: Base, experts: int, half: bool) -> None:
        from peft import LoraConfig, get_peft_model

        with attach(base, experts) as ours:
            factors = {
                name: {p: (a.clone(), b.clone()) for p, (a, b) in ours.factors(name).items()} for name in ours.layout.names
            }
        targets = sorted({path.rpartition(".")[2] for path in factors["e0"]})
        settings = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.0)
        self.model = get_peft_model(base.model, settings, adapter_name="e0")
        self.names = tuple(factors)
        for name in self.names[1:]:
            self.model.add_adapter(name, settings)
        for name, parts in factors.items():
            for path, (a, b) in parts.items():
                layer = self.model.base_model.model.get_submodule(path)
                layer.lora_A[name].weight.data.copy_(a)
                layer.lora_B[name].weight.data.copy_(b.T)
                if half:
                    layer.lora_A[name].to(torch.bfloat16)
                    layer.lora_B[name].to(torch.bfloat16)
        self.model.eval().requires_grad_(False)
        self.model.set_adapter("e0", inference_mode=True)

    def rows(self, count: int) -> dict[str, list[str]]:
        """What makes a batch mixed."""
        return {"adapter_names": [self.names[i % len(self.names)] for i in range(count)]}

    def unload(self) -> None:
        """Give the base its own layers back."""
        self.model.unload()


def theirs_decode(shape: Shape, model: nn.Module, rows: int, steps: int, **extra: Any) -> Callable[[], None]:
    """Greedy steps of a transformers model with its own growing cache."""

    def work() -> None:
        cache = DynamicCache(config=shape.config)
        ids = torch.tensor(prompts(shape, rows, PROMPT), device=DEVICE)
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **extra)
        tokens = torch.full((rows, 1), 5, device=DEVICE)
        synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            logits = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1, **extra).logits
            tokens = logits[:, -1:].argmax(-1)
            tokens.tolist()
        work.seconds = time.perf_counter() - start  # type: ignore[attr-defined]

    return work


def measure_theirs(report: Report, shape: Shape, name: str, model: nn.Module, weights: str, **extra: Any) -> None:
    """Decode without the prompt, and prefill; `adapter_names` in `extra` is a function of the number of rows."""
    names = extra.pop("names", lambda rows: {})
    around = extra.pop("around", contextlib.nullcontext)
    steps = max(2, shape.steps // 4)
    for rows in (1, shape.slots):
        what = f"decode b{rows}"
        with report.case(name, weights=weights, what=what), around():
            clear_peak()
            work = theirs_decode(shape, model, rows, steps, **names(rows))
            times = []
            for _ in range(3):
                work()
                times.append(work.seconds)  # type: ignore[attr-defined]
            middle = statistics.median(times[1:])
            report.say(
                case=name, weights=weights, what=what, tokens_per_s=round(rows * steps / middle, 1),
                ms_per_step=round(1e3 * middle / steps, 3), slowest_ms=round(1e3 * max(times[1:]) / steps, 3), repeats=2,
                peak_gib=peak(),
            )  # fmt: skip
    rows, length = shape.prefill
    ids = torch.tensor(prompts(shape, rows, length), device=DEVICE)

    def prefill() -> None:
        with around():
            model(input_ids=ids, use_cache=True, logits_to_keep=1, **names(rows)).logits.argmax(-1).tolist()

    report.rate(name, rows * length, prefill, 3, weights=weights, what=f"prefill {rows}x{length}")


def measure_rivals(report: Report, shape: Shape, base: Base, weights: str, routed: torch.Tensor | None) -> None:
    """Plain transformers, PEFT with one adapter, and PEFT's mixed batch, at its default and at its best."""
    measure_theirs(report, shape, "transformers, base", base.model, weights)
    for half in (False, True):
        kind = "bf16 adapters" if half else "default"
        with report.case(f"PEFT {kind}", weights=weights):
            peft = Peft(base, 8, half)
            try:
                if routed is not None:
                    with report.case("one-hot against PEFT", weights=weights, adapters=kind):
                        ids = torch.tensor(prompts(shape, len(routed), PROMPT), device=DEVICE)
                        theirs = peft.model(input_ids=ids, **peft.rows(len(routed))).logits[:, -1].float()
                        report.say(
                            case="one-hot against PEFT", weights=weights, adapters=kind, relative=relative(routed, theirs)
                        )
                measure_theirs(report, shape, f"PEFT mixed batch, {kind}", peft.model, weights, names=peft.rows)
                if not half:
                    cast = lambda: torch.autocast(DEVICE.type, torch.bfloat16)  # noqa: E731
                    measure_theirs(
                        report, shape, "PEFT mixed batch, autocast", peft.model, weights, names=peft.rows, around=cast
                    )
                measure_theirs(report, shape, f"PEFT one adapter, {kind}", peft.model, weights)
            finally:
                peft.unload()
        free()


def run(report: Report, shape: Shape, chosen: Sequence[str]) -> None:
    start = time.monotonic()
    model = make_model(shape)
    free()
    report.say(case="base made", seconds=round(time.monotonic() - start, 1), peak_gib=peak(), device=device_name())
    routed: dict[str, torch.Tensor | None] = {}
    for weights in chosen:
        if weights == "resident":
            continue
        base = make_base(model, False)
        with report.case("fp32, two layers"):
            check_exact(report, shape)
        with report.case("correctness", weights=weights):
            routed[weights] = check_ours(report, shape, base, weights)
        free()
        measure_ours(report, shape, base, 8, weights)
        free()
        measure_rivals(report, shape, base, weights, routed.get(weights))
        measure_ours(report, shape, base, 8, weights, fused=False)
        free()
        measure_ours(report, shape, base, 8, weights, "gathered")
        free()
    if "resident" in chosen:
        bnb.make_resident(model, torch.bfloat16)
        free()
        base = make_base(model, True)
        with report.case("correctness", weights="resident"):
            check_ours(report, shape, base, "resident")
        free()
        measure_ours(report, shape, base, 8, "resident")
        free()
        for experts, form in ((8, "gathered"), (8, "wide"), (shape.many, "gathered"), (shape.many, "wide")):
            measure_ours(report, shape, base, experts, "resident", form)
            free()


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def clear_peak() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:
    """GiB allocated at most since `clear_peak`; 0 without CUDA."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if DEVICE.type == "cuda" else 0.0


def free() -> None:
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", choices=("nf4", "resident", "both"), default="both")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    report = Report(time.monotonic() + options.seconds)
    shape = tiny() if options.tiny else llama_2_7b()
    try:
        run(report, shape, ("nf4", "resident") if options.weights == "both" else (options.weights,))
    except TimeoutError:
        report.say(case="time is up", seconds=options.seconds)
    finally:
        report.table()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
