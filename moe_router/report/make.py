"""The stage that measures every arm on the test split and writes the report."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata

import numpy as np

from moe_router import __version__
from moe_router.config import Config, GenerationConfig
from moe_router.data.embed import SentenceEmbedder, load_embedder, query_text
from moe_router.data.sample import key_fact_found
from moe_router.data.slices import Slices
from moe_router.experts.adapters import RoutedModel
from moe_router.experts.base import Base, load_base
from moe_router.experts.encode import Example, encode
from moe_router.experts.library import Library
from moe_router.experts.scoring import Scores, expert_scores, score_examples
from moe_router.experts.train import Plan, Split, train_library
from moe_router.gate.baselines import CENTROID_TEMPERATURES, cbtm, oracle, search_temperature, uniform
from moe_router.gate.gate import Gate
from moe_router.gate.train import expert_of_slice
from moe_router.inference.engine import Engine
from moe_router.inference.router import Router
from moe_router.inference.routing import Route, Selector
from moe_router.progress import Progress, Silent
from moe_router.report import costs
from moe_router.report.arms import ARMS, Arm, Comparison, Costs, ExpertRow, Report
from moe_router.report.render import save
from moe_router.report.verdict import judge
from moe_router.workspace import Workspace, digest_json

ANSWERED = ("base", "dense_rank", "dense_active", "gate_top2")
"""Arms that answer the test questions, where the records have key facts."""
ANSWER_TOKENS = 24
RIVALS = ("base", "dense_rank", "dense_active", "shared_only", "uniform", "cbtm", "gate_top1", "oracle")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "sentence-transformers", "scikit-learn")


@dataclass(frozen=True)
class Arrangement:
    """An arm before it is scored: whose adapters, and the mixture of every test record."""

    weights: np.ndarray  # (records, experts)
    shared: np.ndarray  # (records,)
    routed: bool = False
    """Whether each query pays for embedder and gate."""


@dataclass(frozen=True)
class Bench:
    """What every arm is measured on."""

    test: Split
    examples: list[Example]
    """The test records in tokens."""
    shape: costs.ModelShape
    encoder: costs.ModelShape
    query_tokens: float
    tokens_per_query: float
    context: float
    head_share: float
    """Target tokens as a share of all tokens."""


def make_report(workspace: Workspace, config: Config, progress: Progress | None = None, base: Base | None = None) -> Report:
    """Train the dense rivals, score every arm on the test split, compare, and write `workspace.reports`.

    The dense rivals take recipe, data and tokens of the library. Does nothing when the report there was made from the
    same library, gate and settings.
    """
    progress = progress or Silent()
    library, slices = Library.load(workspace.experts), Slices.load(workspace)
    gate = Gate.load(workspace.experts, library)
    inputs = digest_json([library.digest, gate.inputs, slices.digest, asdict(config.report), asdict(config.experts)])
    path = workspace.reports / "report.json"
    if path.exists():
        found = Report.load(path)
        if found.inputs == inputs:
            return found
    base = base or load_base(library.base)
    embedder = load_embedder(slices.embedder)
    bench = _bench(workspace, slices, library, base, embedder)
    losses, arms, experts = _mixture_arms(workspace, config, library, slices, gate, base, embedder, bench, progress)
    for name, rank in (("dense_rank", _rank(library)), ("dense_active", _active_rank(library))):
        arm, nats = _dense_arm(workspace, config, library, slices, base, bench, name, rank, progress)
        losses[name], arms[name] = nats, arm
    ordered = tuple(arms[name] for name in ARMS if name in arms)
    tokens = np.array([example.target_tokens for example in bench.examples])
    settings = config.report
    compared = tuple(
        Comparison.measured(("gate_top2", rival), losses, tokens, settings.bootstrap, settings.seed)
        for rival in RIVALS
        if rival in losses
    )
    report = Report(
        arms=ordered,
        experts=experts,
        comparisons=compared,
        verdict=judge(ordered, compared),
        environment=_environment(config, library, slices, base),
        notes=_notes(config, library),
        inputs=inputs,
    )
    save(report, workspace.reports)
    return report


def _bench(workspace: Workspace, slices: Slices, library: Library, base: Base, embedder: SentenceEmbedder) -> Bench:
    test = Split.of(workspace, slices, "test")
    examples = encode(test.records, base, library.template, library.max_tokens)
    lengths = np.array([len(e.tokens) for e in examples])
    targets = sum(e.target_tokens for e in examples)
    return Bench(
        test=test,
        examples=examples,
        shape=costs.ModelShape.from_model(base.model),
        encoder=costs.ModelShape.from_model(embedder.encoder),
        query_tokens=float(np.mean(embedder.token_counts([query_text(r.messages) for r in test.records]))),
        tokens_per_query=float(lengths.mean()),
        context=float((lengths.astype(float) ** 2).sum() / lengths.sum() / 2),
        head_share=targets / lengths.sum(),
    )


def _mixture_arms(
    workspace: Workspace,
    config: Config,
    library: Library,
    slices: Slices,
    gate: Gate,
    base: Base,
    embedder: SentenceEmbedder,
    bench: Bench,
    progress: Progress,
) -> tuple[dict[str, np.ndarray], dict[str, Arm], tuple[ExpertRow, ...]]:
    """All arms that the library's own experts make up."""
    with library.open(base) as model:
        progress.stage("score the mixture's arms", 9)
        every = expert_scores(model, bench.test.records, template=library.template, max_tokens=library.max_tokens)
        arranged = _arrangements(workspace, library, slices, gate, model, bench.test, every.nats)
        scored: dict[str, Scores] = {}
        for name, arm in arranged.items():
            scored[name] = score_examples(model, bench.examples, arm.weights, arm.shared)
            progress.advance(1, name)
        accuracy = _accuracies(library, gate, embedder, model, arranged, bench.test, progress)
        arms = {
            name: Arm.measured(
                name,
                scored[name].nats,
                scored[name].tokens,
                _costs(arm, library, model, gate, bench, name),
                config.report.bootstrap,
                config.report.seed,
                key_fact_accuracy=accuracy.get(name),
                trained_tokens=_trained_tokens(library) if name not in ("base",) else None,
            )
            for name, arm in arranged.items()
        }
    owner = every.nats.argmin(1) if len(library.names) != len(slices.names) else bench.test.labels
    rows = []
    for index, name in enumerate(library.names):
        own = owner == index
        if own.any():
            tokens = every.tokens[own]
            before = float(np.exp(scored["base"].nats[own].sum() / tokens.sum()))
            rows.append(ExpertRow(name, int(tokens.sum()), before, float(np.exp(every.nats[own, index].sum() / tokens.sum()))))
    return {name: found.nats for name, found in scored.items()}, arms, tuple(rows)


def _arrangements(
    workspace: Workspace,
    library: Library,
    slices: Slices,
    gate: Gate,
    model: RoutedModel,
    test: Split,
    nats: np.ndarray,
) -> dict[str, Arrangement]:
    """Every arm's mixtures; c-BTM's temperature gets the search that the gate's got, on the tune split."""
    count, experts = nats.shape
    on, off, none = np.ones(count), np.zeros(count), np.zeros((count, experts), dtype=np.float32)
    kept = np.flatnonzero(expert_of_slice(library, slices) >= 0)
    centroids = slices.centroids[kept]
    tune = Split.of(workspace, slices, "tune")
    examples = encode(tune.records, model.base, library.template, library.max_tokens)
    temperature, _ = search_temperature(
        CENTROID_TEMPERATURES,
        lambda t: cbtm(tune.embeddings, centroids, t),
        lambda weights: float(score_examples(model, examples, weights).nats.sum()),
    )

    def routed(mode: str) -> Arrangement:
        return Arrangement(gate.decide(test.embeddings, mode, abstain=False).weights, on, routed=True)

    found = {
        "base": Arrangement(none, off),
        "uniform": Arrangement(uniform(count, experts), on),
        "cbtm": Arrangement(cbtm(test.embeddings, centroids, temperature), on, routed=True),
        "gate_top1": routed("top1"),
        "gate_top2": routed("top2"),
        "gate_soft": routed("soft"),
        "oracle": Arrangement(oracle(nats), on),
    }
    if library.has_shared:
        found["shared_only"] = Arrangement(none, on)
    return found


def _accuracies(
    library: Library,
    gate: Gate,
    embedder: SentenceEmbedder,
    model: RoutedModel,
    arranged: Mapping[str, Arrangement],
    test: Split,
    progress: Progress,
) -> dict[str, float]:
    """Share of greedy answers that hold the key fact, for the arms in ANSWERED."""
    if not any("key_fact" in r.meta for r in test.records):
        return {}
    selector = Selector(gate, embedder, library.has_shared)
    router = Router(library, Engine(model), selector, GenerationConfig(max_new_tokens=ANSWER_TOKENS))
    names = [name for name in ANSWERED if name in arranged]
    progress.stage("answer test questions", len(names))
    found = {}
    for name in names:
        found[name] = answer_accuracy(router, test, arranged[name])
        progress.advance(1, name)
    return found


def answer_accuracy(router: Router, test: Split, arm: Arrangement, batch: int = 64) -> float:
    """Share of greedy answers that hold the key fact, over the records that have one."""
    chosen = [i for i, r in enumerate(test.records) if r.meta.get("key_fact")]
    right = 0
    for at in range(0, len(chosen), batch):
        part = chosen[at : at + batch]
        routes = [
            Route(
                {n: float(w) for n, w in zip(router.names, arm.weights[i], strict=True) if w}, 1.0, False, bool(arm.shared[i])
            )
            for i in part
        ]
        answers = router.ask_many([test.records[i].messages for i in part], routes=routes)
        right += sum(key_fact_found(a.text, test.records[i].meta["key_fact"]) for a, i in zip(answers, part, strict=True))
    return right / len(chosen)


def _dense_arm(
    workspace: Workspace,
    config: Config,
    library: Library,
    slices: Slices,
    base: Base,
    bench: Bench,
    name: str,
    rank: int,
    progress: Progress,
) -> tuple[Arm, np.ndarray]:
    """Train one adapter on all records with the library's recipe and tokens, and score it."""
    recipe = replace(config.experts, mode="isolated", rank=rank, learning_rate=config.experts.dense_learning_rate)
    plan = Plan(
        names=("dense",),
        train=_as_one(Split.of(workspace, slices, "train")),
        tune=_as_one(Split.of(workspace, slices, "tune")),
        config=replace(config, base=library.base, experts=recipe),
        data_digest=slices.digest,
        rows_per_step=len(library.names),
    )
    checkpoint = workspace.checkpoints / f"{name}.safetensors"
    dense = train_library(workspace.arms / name, plan, checkpoint, progress, base, title=f"train {name} (rank {rank})")
    card = dense.cards["dense"]
    everything = Arrangement(np.ones((len(bench.test.records), 1), dtype=np.float32), np.zeros(len(bench.test.records)))
    with dense.open(base) as model:
        found = score_examples(model, bench.examples, everything.weights)
        accuracy = None
        if name in ANSWERED and any(r.meta.get("key_fact") for r in bench.test.records):
            progress.stage(f"answer test questions ({name})", 1)
            router = Router(dense, Engine(model), None, GenerationConfig(max_new_tokens=ANSWER_TOKENS))
            accuracy = answer_accuracy(router, bench.test, everything)
            progress.advance(1)
        paid = _costs(everything, dense, model, None, bench, name)
    arm = Arm.measured(
        name,
        found.nats,
        found.tokens,
        paid,
        config.report.bootstrap,
        config.report.seed,
        key_fact_accuracy=accuracy,
        learning_rate=card["learning_rate"],
        trained_tokens=card["tokens"],
    )
    return arm, found.nats


def _as_one(split: Split) -> Split:
    return replace(split, labels=np.zeros_like(split.labels))


def _costs(arm: Arrangement, library: Library, model: RoutedModel, gate: Gate | None, bench: Bench, name: str) -> Costs:
    linears, layout = bench.shape.linears, model.layout
    ranks = costs.active_ranks(arm.weights, arm.shared, layout.ranks, layout.shared_rank)
    plain = costs.base_flops_per_token(bench.shape, bench.context)
    choosing = 0.0
    if arm.routed and gate is not None:
        query = costs.embedder_flops_per_query(bench.encoder, bench.query_tokens)
        query += costs.gate_flops_per_query(gate.dimension, len(library.names), len(gate.memory.queries))
        choosing = costs.amortised_flops_per_token(query, bench.tokens_per_query)
    executed = costs.adapter_flops_per_token(linears, costs.executed_rank(ranks, layout.total))
    active = costs.adapter_flops_per_token(linears, float(ranks.mean()))
    train = 0.0
    if name != "base":
        rank = layout.shared_rank + max(layout.ranks)
        per_token = costs.lora_training_flops_per_token(bench.shape, bench.context, rank, bench.head_share)
        train = per_token * _trained_tokens(library)
    return Costs(
        flops_per_token=plain + executed + choosing,
        active_flops_per_token=plain + active + choosing,
        train_flops=train,
        adapter_params=costs.adapter_params(linears, layout.total) if name != "base" else 0,
        active_adapter_params=round(costs.adapter_params(linears, 1) * float(ranks.mean())),
    )


def _trained_tokens(library: Library) -> int:
    return int(sum(library.cards[name]["tokens"] for name in library.names))


def _rank(library: Library) -> int:
    return max(int(library.cards[name]["rank"]) for name in library.names)


def _active_rank(library: Library) -> int:
    """Shared plus two experts: what the top-2 gate uses."""
    shared = int(library.cards["shared"]["rank"]) if library.has_shared else 0
    return shared + min(2, len(library.names)) * _rank(library)


def _environment(config: Config, library: Library, slices: Slices, base: Base) -> dict[str, object]:
    return {
        "base": base.id,
        "base_digest": base.digest,
        "library_digest": library.digest,
        "slices_digest": slices.digest,
        "device": str(base.device),
        "processor": platform.processor() or platform.machine(),
        "seeds": {
            "data": config.data.seed,
            "slice": config.slice.seed,
            "experts": config.experts.seed,
            "gate": config.gate.seed,
        },
        "versions": {"moe-router": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "command": "moe-router report",
    }


def _notes(config: Config, library: Library) -> tuple[str, ...]:
    search = (
        "The learning rate of every trained arm was searched on the tune split with at most 10 % of the training tokens."
        if config.experts.search_rates
        else "Learning rates were set, not searched, for this data."
    )
    return (
        search,
        "One training seed; the intervals cover the choice of test records, not training.",
        "Mixture arms are measured without abstention; the training FLOPs leave out the rate search and the gate's measuring.",
    )
