"""What `gates compare` finds: a row for every gate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

LEARNED = "learned, top-2"
"""The row that every other is compared with."""
OWN, ORACLE = "own slice", "oracle"
"""Between these two lies what a gate can win."""


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One gate on the test records."""

    name: str
    source: str
    perplexity: float
    of_oracle: float
    """Oracle perplexity / perplexity: 1 is as good."""
    regret: float
    """Nats per response token above the oracle."""
    against_learned: Interval
    """Its perplexity relative to the learned gate's top-2, minus 1 (paired bootstrap over records): above 0, it is worse."""
    milliseconds: float | None
    """Median time to choose for one embedded query; None where it needs the answer or the base."""
    temperature: float | None
    """τ found on the tune split; None where there is none."""


@dataclass(frozen=True)
class Comparison:
    """All rows, best first, and how much of what an own-slice gate leaves the learned one wins back."""

    rows: tuple[Row, ...]
    records: int
    recovered: float
    """(own slice − learned) / (own slice − oracle) in nats: 1 is the oracle's choice."""
    recovered_interval: Interval

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """A table for a terminal."""
        head = f"{'gate':30}{'perplexity':>11}{'of oracle':>11}{'regret':>8}{'against learned':>20}{'ms':>7}{'τ':>6}"
        made = [head]
        for row in self.rows:
            versus = "" if row.name == LEARNED else f"{row.against_learned.low:+.2%} to {row.against_learned.high:+.2%}"
            spent = "" if row.milliseconds is None else f"{row.milliseconds:.2f}"
            tau = "" if row.temperature is None else f"{row.temperature:g}"
            made.append(
                f"{row.name:30}{row.perplexity:11.3f}{row.of_oracle:11.1%}{row.regret:8.3f}{versus:>20}{spent:>7}{tau:>6}"
            )
        low, high = self.recovered_interval
        made.append(
            f"{self.records} test records; of the way from own slice to oracle the learned gate goes {self.recovered:.0%} "
            f"(95 % interval {low:.0%} to {high:.0%})"
        )
        return made
