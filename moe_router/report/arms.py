"""What a report holds: arms, experts, comparisons, verdict; and its JSON form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moe_router.errors import LibraryError, WorkspaceError
from moe_router.report.perplexity import Difference, Interval, bootstrap_interval, paired_difference, perplexity
from moe_router.workspace import read_json

SCHEMA = 1
"""Version of report.json."""


@dataclass(frozen=True)
class Kind:
    """What an arm is, whatever its figures."""

    label: str
    """Short, for tables and figures."""
    explanation: str
    trained: bool
    """Whether it needs training of its own beyond the library."""
    group: str
    """`base`, `dense` (one adapter for everything), `mixture` (the trained gate), `choice` (another way of choosing among
    the same experts), `control` (the same cost without the idea under test), or `bound` (knows the answer)."""


ARMS: Mapping[str, Kind] = {
    "base": Kind("base", "the base without adapters", False, "base"),
    "dense_rank": Kind("dense, one expert's rank", "one adapter on all records, with the rank of one expert", True, "dense"),
    "dense_active": Kind("dense, active rank", "one adapter on all records, with the rank a query uses", True, "dense"),
    "dense_params": Kind(
        "dense, all ranks", "one adapter on all records, with the rank of all experts together", True, "dense"
    ),
    "shared_only": Kind("shared expert alone", "the library's always-on expert, no routed one", False, "choice"),
    "uniform": Kind("uniform mix", "all experts, equally weighted", False, "choice"),
    "random_slices": Kind("random slices", "experts trained on slices drawn at random, mixed alike", True, "control"),
    "shuffled_gate": Kind("shuffled gate", "the trained gate's routes dealt to other queries", False, "control"),
    "best_fixed": Kind("best fixed expert", "per slice, the expert that was best on the gate's records", False, "choice"),
    "cbtm": Kind("c-BTM", "softmax over the similarity to slice centroids, two kept", False, "choice"),
    "gate_top1": Kind("gate, top 1", "the trained gate's first expert", False, "mixture"),
    "gate_top2": Kind("gate, top 2", "the trained gate's first two experts, mixed", False, "mixture"),
    "gate_soft": Kind("gate, soft", "all experts, weighted by the trained gate", False, "mixture"),
    "oracle": Kind("oracle", "the best expert of each record in hindsight: a bound, not a method", False, "bound"),
}
"""Every arm, in the order in which reports list them."""


@dataclass(frozen=True)
class Costs:
    """What an arm takes."""

    flops_per_token: float
    """Executed per generated token: base, adapters as computed, gate and embedder spread over a query's tokens."""
    active_flops_per_token: float
    """The same with only the adapter slots that the route needs."""
    train_flops: float
    adapter_params: int
    """Held in memory."""
    active_adapter_params: int
    """Used by a query, on average."""


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
    learning_rate: float | None = None
    key_fact_accuracy: float | None = None
    """Share of greedy answers that hold the record's key fact."""
    tokens_per_second: float | None = None
    trained_tokens: int | None = None

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
    def difference(self) -> Difference:
        return Difference(self.relative, Interval(*self.ci95), self.p)

    @property
    def outcome(self) -> str:
        """`better`, `worse`, or `open` where the interval includes 0."""
        if not self.difference.shown:
            return "open"
        return "better" if self.relative < 0 else "worse"


@dataclass(frozen=True)
class Verdict:
    """What the figures mean for whoever has to choose."""

    use: str
    """`mixture`, `dense`, `base`, or `unknown` where the rival at equal FLOPs is missing."""
    headline: str
    sentences: tuple[str, ...] = ()
    """One for each rival."""
    remarks: tuple[str, ...] = ()
    """What else bears on the choice: gate, oracle, cost, rivals not measured."""


@dataclass(frozen=True)
class Report:
    """Everything that a report says; `report.json` holds the same."""

    arms: tuple[Arm, ...]
    experts: tuple[ExpertRow, ...]
    comparisons: tuple[Comparison, ...]
    verdict: Verdict
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions, device, seeds, command, data digests."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each stage."""
    notes: tuple[str, ...] = ()
    """What was not tested, and what limits the figures."""
    inputs: str = ""
    """Digest of what it was made from."""
    fresh: bool = field(default=True, compare=False)
    """False when nothing had to be done."""

    def arm(self, name: str) -> Arm | None:
        """The arm of that id, if it was measured."""
        return next((arm for arm in self.arms if arm.id == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data; optional figures that were not measured are left out."""
        return {
            "schema": SCHEMA,
            "verdict": _plain(self.verdict),
            "arms": [_plain(arm) for arm in self.arms],
            "comparisons": [_plain(row) for row in self.comparisons],
            "experts": [_plain(row) for row in self.experts],
            "environment": dict(self.environment),
            "timings": dict(self.timings),
            "notes": list(self.notes),
            "inputs": self.inputs,
        }

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read report.json. Raises WorkspaceError when it is missing, damaged, or of another version."""
        value = read_json(path)
        try:
            if value["schema"] != SCHEMA:
                raise WorkspaceError(f"{path} is of version {value['schema']}, not {SCHEMA}: run `moe-router report` again")
            return cls(
                arms=tuple(_tuples(Arm, row) for row in value["arms"]),
                experts=tuple(ExpertRow(**row) for row in value["experts"]),
                comparisons=tuple(_tuples(Comparison, row) for row in value["comparisons"]),
                verdict=_tuples(Verdict, value["verdict"]),
                environment=value["environment"],
                timings=value["timings"],
                notes=tuple(value["notes"]),
                inputs=value["inputs"],
                fresh=False,
            )
        except (KeyError, TypeError, LibraryError) as error:
            raise WorkspaceError(f"{path} is damaged ({error}): delete it and run `moe-router report` again") from error

    def lines(self) -> list[str]:
        """For the terminal."""
        from moe_router.report.terminal import report_lines

        return report_lines(self)


def _plain(row: Any) -> dict[str, Any]:
    values = {name: value for name, value in dataclasses.asdict(row).items() if value is not None}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _tuples(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """The other way round: `kind` with JSON's lists as tuples."""
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
