"""The stage that measures every arm on the test split and writes the report."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata

import numpy as np

from moe_router import __version__
from moe_router.config import Config
from moe_router.data.embed import load_embedder
from moe_router.data.slices import Slices
from moe_router.experts.base import Base, load_base
from moe_router.experts.library import Library
from moe_router.gate.gate import Gate
from moe_router.progress import Progress, Silent
from moe_router.report import analysis
from moe_router.report.against import LOSSES, save_losses
from moe_router.report.answers import Questions, side_by_side
from moe_router.report.arms import ARMS, Comparison, CurvePoint, ExpertRow, Routing
from moe_router.report.arrow import measure_arrow
from moe_router.report.bench import Bench
from moe_router.report.document import Report
from moe_router.report.estimate import estimate
from moe_router.report.full import LARGEST, measure_full
from moe_router.report.measure import Measurement, measure_arm
from moe_router.report.notes import notes_of
from moe_router.report.pool import Pool, open_pool
from moe_router.report.registry import MIXTURE, arms_of
from moe_router.report.render import ANSWERS, save
from moe_router.report.repeats import curve, repeat
from moe_router.report.verdict import judge
from moe_router.workspace import Workspace, digest_json, read_json, write_json

FORMAT = 3
"""Of what is measured: a report of another format is measured again."""
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "sentence-transformers", "scikit-learn")
UNMEASURED = ("price_per_hour",)
"""Settings of the report that change no figure."""


APART = {"arrow": measure_arrow, "full": measure_full}
"""How arms apart are measured."""


@dataclass
class Found:
    """What has been measured so far."""

    arms: dict[str, Measurement] = field(default_factory=dict)
    experts: tuple[ExpertRow, ...] = ()
    routing: Routing | None = None
    confidence: np.ndarray | None = None  # (records,)
    curve: tuple[CurvePoint, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


def make_report(workspace: Workspace, config: Config, progress: Progress | None = None, base: Base | None = None) -> Report:
    """Train the arms that need it, score every arm on the test split, compare, and write `workspace.reports`.

    What an arm trains takes recipe, data and tokens of the library. Does nothing when the report there was made from the
    same library, gate and settings; another price alone measures nothing again. Raises ConfigError for an unknown budget.
    """
    progress = progress or Silent()
    library, slices = Library.load(workspace.experts), Slices.load(workspace)
    gate = Gate.load(workspace.experts, library)
    names = arms_of(config.report.budget, library, config.report.larger_base)
    inputs = _inputs(config, library, slices, gate)
    earlier = _earlier(workspace, config, inputs)
    if earlier is not None:
        return earlier
    bench = Bench.of(workspace, config, library, slices, base or load_base(library.base), load_embedder(slices.embedder))
    if bench.shape.params > LARGEST and "full" in names:
        names.remove("full")
        progress.note(f"full fine-tuning is left out: {bench.shape.params:,} parameters need 16 bytes each")
    questions = Questions.of(bench)
    found = _measure(bench, gate, names, questions, progress)
    report = _report(bench, found, inputs)
    answers = {name: found.arms[name].answers for name in ARMS if name in found.arms and found.arms[name].answers}
    shown = side_by_side(bench, questions, answers, found.arms[MIXTURE].mix, found.confidence) if answers else []
    write_json(workspace.reports / ANSWERS, shown)
    losses = {name: measured.nats for name, measured in found.arms.items()}
    save_losses(workspace.reports / LOSSES, losses, bench.target_tokens, bench.digest)
    save(report, workspace.reports, shown)
    return report


def _inputs(config: Config, library: Library, slices: Slices, gate: Gate) -> str:
    """Digest of everything that decides the figures."""
    settings = {key: value for key, value in asdict(config.report).items() if key not in UNMEASURED}
    return digest_json([FORMAT, library.digest, gate.inputs, slices.digest, settings, asdict(config.experts)])


def _earlier(workspace: Workspace, config: Config, inputs: str) -> Report | None:
    """The report that is there, if it was made of the same inputs; priced anew where the price is another."""
    path, answers = workspace.reports / "report.json", workspace.reports / ANSWERS
    if not path.exists() or not answers.exists():
        return None
    found = Report.load(path)
    if found.inputs != inputs:
        return None
    if found.price_per_hour != config.report.price_per_hour:
        found = found.priced(config.report.price_per_hour)
        save(found, workspace.reports, read_json(answers))
    return found


def _measure(bench: Bench, gate: Gate, names: Sequence[str], questions: Questions, progress: Progress) -> Found:
    """All arms, those that share adapters together; the library's own first."""
    found = Found()
    own = [name for name in names if ARMS[name].own]
    groups = [own, *([name] for name in names if not ARMS[name].own)]
    for group in groups:
        start = time.perf_counter()
        if ARMS[group[0]].apart:
            found.arms[group[0]] = APART[group[0]](group[0], bench, progress)
            found.seconds[f"measure {group[0]}"] = _lap(start)
            continue
        with open_pool(bench, group[0], ARMS[group[0]], gate, progress) as pool:
            if group is own:
                progress.note(_estimate(pool, names, questions))
                start = time.perf_counter()
            else:
                found.seconds[f"train {group[0]}"] = _lap(start)
            _measure_group(pool, group, questions, found, bench.target_tokens)
    start = time.perf_counter()
    for name, levels in repeat(bench, gate, progress).items():
        measured = found.arms[name]
        found.arms[name] = replace(measured, arm=replace(measured.arm, repeats=levels))
        found.seconds["repeat with other seeds"] = _lap(start)
    start = time.perf_counter()
    found.curve = curve(bench, gate, progress, {name: measured.arm for name, measured in found.arms.items()})
    if found.curve:
        found.seconds["train on fewer tokens"] = _lap(start)
    return found


def _measure_group(pool: Pool, names: Sequence[str], questions: Questions, found: Found, tokens: np.ndarray) -> None:
    own = pool.library is pool.bench.library
    pool.progress.stage("measure the arms of the library" if own else f"measure {names[0]}", len(names))
    for name in names:
        start = time.perf_counter()
        found.arms[name] = measure_arm(name, pool, questions, tokens)
        found.seconds[f"measure {name}"] = _lap(start)
        pool.progress.advance(1, name)
    if own:
        _analyse_gate(pool, found)


def _analyse_gate(pool: Pool, found: Found) -> None:
    """What only the library's own experts can tell."""
    bench, tokens = pool.bench, pool.bench.target_tokens
    abstained = pool.gate.decide(pool.seen, "top2").abstained
    free = replace(pool.gate.decide(pool.seen, "top2", abstain=False), abstained=abstained)
    alone, names = pool.alone.nats, pool.library.names
    found.confidence = free.confidence
    found.experts = analysis.expert_rows(names, bench.labels, found.arms["base"].nats, alone, tokens)
    found.routing = analysis.routing(names, bench.labels, free, alone, found.arms[MIXTURE].nats, tokens)


def _estimate(pool: Pool, names: Sequence[str], questions: Questions) -> str:
    answered = len(questions.chosen) + len(questions.sampled) * questions.samples
    longest = questions.settings.max_new_tokens
    return estimate(pool, names, answered, longest).line(pool.bench.config.report.budget)


def _report(bench: Bench, found: Found, inputs: str) -> Report:
    settings, tokens = bench.config.report, bench.target_tokens
    losses = {name: measured.nats for name, measured in found.arms.items()}
    arms = tuple(found.arms[name].arm for name in ARMS if name in found.arms)
    compared = tuple(_comparisons(bench, losses))
    slices = analysis.slice_rows(bench.library.names, bench.labels, losses, tokens, settings.bootstrap, settings.seed)
    files, origin = analysis.source_names([record.source for record in bench.test.records])
    sources = analysis.slice_rows(files, origin, losses, tokens, settings.bootstrap, settings.seed) if len(files) > 1 else ()
    split = analysis.regret(losses, tokens, settings.bootstrap, settings.seed)
    return Report(
        arms=arms,
        experts=found.experts,
        comparisons=compared,
        verdict=judge(arms, compared, slices, split, len(bench.library.names)),
        slices=slices,
        sources=sources,
        regret=split,
        routing=found.routing,
        slice_map=analysis.slice_map(bench.library.names, bench.labels, bench.test.embeddings, losses, tokens),
        curve=found.curve,
        environment=_environment(bench),
        timings={name: round(seconds, 1) for name, seconds in found.seconds.items()},
        notes=tuple(notes_of(bench, arms)),
        answer_tokens=(float((bench.lengths - tokens).mean()), float(tokens.mean())),
        inputs=inputs,
    ).priced(settings.price_per_hour)


def _comparisons(bench: Bench, losses: Mapping[str, np.ndarray]) -> Iterator[Comparison]:
    settings = bench.config.report
    for name, kind in ARMS.items():
        if kind.rival and name in losses:
            yield Comparison.measured((MIXTURE, name), losses, bench.target_tokens, settings.bootstrap, settings.seed)


def _environment(bench: Bench) -> dict[str, object]:
    config, base = bench.config, bench.base
    return {
        "base": base.id,
        "base_digest": base.digest,
        "library_digest": bench.library.digest,
        "slices_digest": bench.slices.digest,
        "test_digest": bench.digest,
        "test_records": len(bench.test.records),
        "device": str(base.device),
        "processor": platform.processor() or platform.machine(),
        "seeds": {part: getattr(config, part).seed for part in ("data", "slice", "experts", "gate", "report")},
        "versions": {"moe-router": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "command": f"moe-router report --budget {config.report.budget} --seeds {config.report.seeds}",
    }


def _lap(start: float) -> float:
    return time.perf_counter() - start
