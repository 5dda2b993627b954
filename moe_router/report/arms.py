"""The rows of a report: arms, comparisons, slices, experts, routes, regret, verdict. Numbers only, each with its unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_router.errors import LibraryError
from moe_router.report.perplexity import bootstrap_interval, paired_difference, perplexity
from moe_router.report.registry import ARMS, Kind

__all__ = [
    "ARMS",
    "Arm",
    "Comparison",
    "Costs",
    "CurvePoint",
    "ExpertRow",
    "Price",
    "Regret",
    "Routing",
    "SliceMap",
    "SliceRow",
    "Verdict",
]


@dataclass(frozen=True)
class Costs:
    """What an arm takes."""

    flops_per_token: float
    """Executed per generated token: base, adapters as computed, gate and embedder spread over a query's tokens."""
    active_flops_per_token: float
    """The same with only the adapter slots that the route needs."""
    train_flops: float
    """Of its adapters, the search of their learning rates, and the measuring that its way of choosing was fitted on."""
    adapter_params: int
    """Held in memory."""
    active_adapter_params: int
    """Used by a query, on average."""
    memory_bytes: float | None = None
    """Weights, adapters held, and the KV cache of one sequence."""
    decode_bytes_per_token: float | None = None
    """Read to generate one token of one sequence: weights, adapters used, and the KV cache."""


@dataclass(frozen=True)
class Price:
    """What an arm costs on a machine of a given price, in that price's currency."""

    per_1000_answers: float | None = None
    """At the measured speed of generating."""
    per_training: float | None = None
    """At the FLOPs per second reached while scoring."""


@dataclass(frozen=True)
class Arm:
    """One row of the report."""

    id: str
    label: str
    perplexity: float
    ci95: tuple[float, float]
    nats_per_token: float
    target_tokens: int
    flops_per_token: float
    active_flops_per_token: float
    train_flops: float
    adapter_params: int
    active_adapter_params: int
    memory_bytes: float | None = None
    decode_bytes_per_token: float | None = None
    bits_per_byte: float | None = None
    """Loss per UTF-8 byte of the responses, which bases with other tokenizers share."""
    rank: int | None = None
    """Of each adapter that the arm trained for itself."""
    learning_rate: float | None = None
    key_fact_accuracy: float | None = None
    """Share of greedy answers that hold the record's key fact."""
    exact_match: float | None = None
    """Share of greedy answers that give the reference's final answer."""
    agreement: float | None = None
    """Share of answers drawn to one question that come to the most frequent one, on average over a few questions."""
    distinct_answers: float | None = None
    """Different answers among those, on average."""
    sampled_right: float | None = None
    """Share of the drawn answers that are right."""
    tokens_per_second: float | None = None
    """Read while scoring, prompts included, gate and embedder not."""
    generated_per_second: float | None = None
    """Tokens generated, many answers at a time."""
    trained_tokens: int | None = None
    repeats: tuple[float, ...] = ()
    """Perplexity when trained again with other seeds."""
    price: Price | None = None

    def __post_init__(self) -> None:
        if self.id not in ARMS:
            raise LibraryError(f"unknown arm {self.id!r}: use one of {', '.join(ARMS)}")

    @classmethod
    def measured(
        cls, name: str, nats: np.ndarray, tokens: np.ndarray, costs: Costs, resamples: int = 1000, seed: int = 0, **more: Any
    ) -> Arm:
        """An arm from its losses on the test records; `more` fills the optional fields.

        *Shape:* nats and tokens (records,). Raises LibraryError when a loss is not finite.
        """
        if not np.isfinite(nats).all():
            bad = int((~np.isfinite(nats)).sum())
            raise LibraryError(f"arm {name}: {bad} of {len(nats)} test records have no finite loss; train its adapters again")
        return cls(
            id=name,
            label=ARMS[name].label if name in ARMS else name,
            perplexity=perplexity(nats, tokens),
            ci95=bootstrap_interval(nats, tokens, resamples, seed),
            nats_per_token=float(np.sum(nats) / np.sum(tokens)),
            target_tokens=int(np.sum(tokens)),
            **dataclasses.asdict(costs),
            **more,
        )

    @property
    def kind(self) -> Kind:
        return ARMS[self.id]


@dataclass(frozen=True)
class ExpertRow:
    """One expert on the test records of its own slice."""

    name: str
    target_tokens: int
    before: float
    """Perplexity of the base."""
    after: float
    """Perplexity with the expert, and with the shared one where there is one."""


@dataclass(frozen=True)
class Comparison:
    """An arm against a rival on the same records."""

    arm: str
    rival: str
    relative: float
    """perplexity(arm) / perplexity(rival) - 1: below 0, the arm is better."""
    ci95: tuple[float, float]
    p: float

    @classmethod
    def measured(
        cls, pair: tuple[str, str], losses: Mapping[str, np.ndarray], tokens: np.ndarray, resamples: int = 1000, seed: int = 0
    ) -> Comparison:
        """`pair` is (arm, rival), `losses` the nats (records,) of each arm."""
        arm, rival = pair
        found = paired_difference(losses[arm], losses[rival], tokens, resamples, seed)
        return cls(arm, rival, found.relative, found.ci95, found.p)

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0, and p is below 0.05 (of few resamples, p is the stricter)."""
        return self.p < 0.05 and (self.ci95[0] > 0 or self.ci95[1] < 0)

    @property
    def outcome(self) -> str:
        """`better`, `worse`, or `open` where the interval includes 0."""
        if not self.shown:
            return "open"
        return "better" if self.relative < 0 else "worse"


@dataclass(frozen=True)
class SliceRow:
    """The test records of one slice under every arm."""

    name: str
    records: int
    target_tokens: int
    perplexity: Mapping[str, float]
    """By arm."""
    against: Comparison | None = None
    """The mixture against its fair rival on these records alone; its interval knows nothing of the other slices."""


@dataclass(frozen=True)
class Regret:
    """Where the mixture's distance from its fair rival comes from, in nats per response token; the two parts add up."""

    rival: str
    gate: float
    """Mixture less oracle: what better choosing could still win."""
    gate_ci95: tuple[float, float]
    experts: float
    """Oracle less rival: what remains when the best expert answers every record. Below 0, the experts are good enough."""
    experts_ci95: tuple[float, float]

    @property
    def total(self) -> float:
        """Mixture less rival."""
        return self.gate + self.experts


@dataclass(frozen=True)
class Routing:
    """What the gate did with the test records."""

    experts: tuple[str, ...]
    weight: tuple[float, ...]
    """Share of all routing weight that each expert got."""
    first: tuple[float, ...]
    """Share of the queries whose first choice it was."""
    best: tuple[float, ...]
    """Share of the queries that it really answered best."""
    balance: float
    """Experts in even use, as a share of all: the exponential of the weights' entropy over their number."""
    hits: float
    """Share of queries whose first choice was the best expert."""
    calibration_error: float
    calibration: tuple[tuple[float, float, int], ...]
    """(mean confidence, share right, queries) of each occupied bin."""
    risk: tuple[tuple[float, float], ...]
    """(share of queries answered, perplexity on them), the most confident queries first."""
    abstained: float
    """Share of the test queries on which the gate would abstain; the figures here are without abstention."""
    perplexity: tuple[tuple[float, ...], ...]
    """Of every expert alone (columns) on the records of every slice (rows), in the order of `experts`."""
    chosen_by_slice: tuple[tuple[int, ...], ...] = ()
    """Queries of every slice (rows) whose first choice was each expert (columns), in the order of `experts`."""
    chosen_by_best: tuple[tuple[int, ...], ...] = ()
    """Queries that each expert really answered best (rows) by the expert chosen first (columns)."""


@dataclass(frozen=True)
class CurvePoint:
    """An arm trained on a share of the tokens, its own schedule from start to end."""

    arm: str
    trained_tokens: int
    perplexity: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class SliceMap:
    """Test queries on a plane: their embeddings along the two directions in which the slices' centres differ most."""

    slices: tuple[str, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    slice: tuple[int, ...]
    """Place of each query's slice in `slices`."""
    lead: tuple[float, ...]
    """Nats per token by which the mixture predicts each answer better than its fair rival; below 0, worse."""
    share: float
    """Of the variance between the slices' centres that the plane shows."""


@dataclass(frozen=True)
class Verdict:
    """What the figures mean for whoever has to choose."""

    use: str
    """`mixture`, `dense`, `base`, or `unknown` where the rival at equal FLOPs is missing."""
    headline: str
    sentences: tuple[str, ...] = ()
    """One for each rival that has something in common with the mixture: rank, FLOPs, memory, or no adapter at all."""
    remarks: tuple[str, ...] = ()
    """What else bears on the choice: gate, oracle, cost, rivals not measured."""
    instead: str = ""
    """The setting to use where a mixture is not the advice."""
