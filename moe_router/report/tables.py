"""The report's tables as plain cells, which Markdown and HTML only dress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from moe_router.report.arms import Arm, SliceRow
from moe_router.report.document import Report
from moe_router.report.registry import MIXTURE
from moe_router.report.words import OUTCOMES, amount, interval, level, money, p_value, percent, si, span


@dataclass(frozen=True)
class Table:
    """Cells by row; every row is as long as `head`."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()
    """Columns of numbers."""
    code: tuple[int, ...] = ()
    """Columns of identifiers."""


ARM_COLUMNS: dict[str, Callable[[Arm], str]] = {
    "arm": lambda arm: arm.id,
    "perplexity": lambda arm: level(arm.perplexity),
    "95 % interval": span,
    "other seeds": lambda arm: ", ".join(map(level, arm.repeats)),
    "bits/byte": lambda arm: "" if arm.bits_per_byte is None else f"{arm.bits_per_byte:.3f}",
    "right facts": lambda arm: percent(arm.key_fact_accuracy),
    "right answers": lambda arm: percent(arm.exact_match),
    "FLOPs/token executed": lambda arm: si(arm.flops_per_token),
    "active": lambda arm: si(arm.active_flops_per_token),
    "training FLOPs": lambda arm: si(arm.train_flops) if arm.train_flops else "",
    "parameters held": lambda arm: si(arm.adapter_params),
    "used": lambda arm: si(arm.active_adapter_params),
}
COST_COLUMNS: dict[str, Callable[[Arm], str]] = {
    "arm": lambda arm: arm.id,
    "tokens/s read": lambda arm: "" if arm.tokens_per_second is None else f"{arm.tokens_per_second:,.0f}",
    "tokens/s generated": lambda arm: "" if arm.generated_per_second is None else f"{arm.generated_per_second:,.0f}",
    "memory": lambda arm: "" if arm.memory_bytes is None else f"{si(arm.memory_bytes)}B",
    "bytes/token generated": lambda arm: "" if arm.decode_bytes_per_token is None else f"{si(arm.decode_bytes_per_token)}B",
    "1,000 answers": lambda arm: "" if arm.price is None else money(arm.price.per_1000_answers),
    "training run": lambda arm: "" if arm.price is None else money(arm.price.per_training),
    "rank": lambda arm: "" if arm.rank is None else str(arm.rank),
    "learning rate": lambda arm: "" if arm.learning_rate is None else f"{arm.learning_rate:g}",
    "trained tokens": lambda arm: "" if arm.trained_tokens is None else f"{arm.trained_tokens:,}",
}
CONSISTENCY_COLUMNS: dict[str, Callable[[Arm], str]] = {
    "arm": lambda arm: arm.id,
    "agrees with itself": lambda arm: percent(arm.agreement),
    "different answers": lambda arm: "" if arm.distinct_answers is None else f"{arm.distinct_answers:.1f}",
    "right": lambda arm: percent(arm.sampled_right),
}
ARM_NOTE = (
    "All on the same held-out response tokens; lower perplexity is better. FLOPs count 2 per multiply-add: executed is what "
    "the code computes for a token, active what the route needs. Parameters are the adapters': held in memory, used by a query."
)
CONSISTENCY_NOTE = (
    "The same few test questions answered again and again at temperature 1: the share of answers that come to the most "
    "frequent one, how many different ones there were, and the share that is right."
)
COST_NOTE = "Speeds are measured on this machine; memory and bytes are computed for one sequence."
PRICE_NOTE = " Prices: a machine at {} an hour, in that currency; a training run's follows from its FLOPs at scoring speed."
SLICE_NOTE = (
    "Perplexity on the test records of each slice. Intervals are of one slice alone: with many, one in twenty misleads."
)
SOURCE_NOTE = "The same by the file that the test records came from."
CHOICE_NOTE = "Test queries of each row by the expert that the gate chose first; on the diagonal it is the row's own."
SLICE_ARMS = ("base", "dense_active", "dense_params", "cbtm", "gate_top2", "oracle")
"""Arms of the table by slice; the others are in report.json."""


def tables(report: Report) -> Iterator[Table]:
    """Every table that the report has figures for, in reading order."""
    yield _arms(report, "Arms", ARM_NOTE, ARM_COLUMNS)
    if report.comparisons:
        yield _comparisons(report)
    if report.slices:
        yield _slices(report, report.slices, "Slices", SLICE_NOTE)
    if report.sources:
        yield _slices(report, report.sources, "Sources", SOURCE_NOTE)
    yield from _routing(report)
    yield from _consistency(report)
    if report.experts:
        yield _experts(report)
    priced = PRICE_NOTE.format(money(report.price_per_hour)) if report.price_per_hour else ""
    yield _arms(report, "Speed, memory and cost", COST_NOTE + priced, COST_COLUMNS)


def _arms(report: Report, title: str, note: str, columns: dict[str, Callable[[Arm], str]]) -> Table:
    """One row per arm; columns that no arm has are left out."""
    cells = {head: [cell(arm) for arm in report.arms] for head, cell in columns.items()}
    kept = {head: column for head, column in cells.items() if any(column)}
    rows = tuple(zip(*kept.values(), strict=True))
    return Table(title, note, tuple(kept), rows, tuple(range(1, len(kept))), (0,))


def _consistency(report: Report) -> Iterator[Table]:
    asked = [arm for arm in report.arms if arm.agreement is not None]
    if asked:
        yield _arms(replace(report, arms=tuple(asked)), "Consistency", CONSISTENCY_NOTE, CONSISTENCY_COLUMNS)


def _comparisons(report: Report) -> Table:
    rows = tuple((c.arm, c.rival, amount(c), interval(c), p_value(c), OUTCOMES[c.outcome]) for c in report.comparisons)
    note = "Relative difference in perplexity, by a paired bootstrap over records."
    return Table("Comparisons", note, ("arm", "rival", "perplexity", "95 % interval", "p", "arm is"), rows, code=(0, 1))


def _slices(report: Report, parts: Sequence[SliceRow], title: str, note: str) -> Table:
    arms = [arm.id for arm in report.arms if arm.id in SLICE_ARMS]
    rows = []
    for row in parts:
        found = ("", "") if row.against is None else (amount(row.against), interval(row.against))
        levels = (level(row.perplexity[arm]) for arm in arms)
        rows.append((row.name, f"{row.records:,}", *levels, *found))
    rival = next((row.against.rival for row in parts if row.against), "")
    head = (title.lower().rstrip("s"), "records", *arms, "difference", "95 % interval")
    note += f" The difference is that of {MIXTURE} to {rival}." if rival else ""
    return Table(title, note, head, tuple(rows), tuple(range(1, len(head))))


def _routing(report: Report) -> Iterator[Table]:
    found = report.routing
    if found is None:
        return
    shares = zip(found.experts, found.weight, found.first, found.best, strict=True)
    rows = tuple((name, *(percent(share) for share in row)) for name, *row in shares)
    note = (
        f"The first choice was the best expert for {percent(found.hits)} of the queries; calibration error of the confidence "
        f"{found.calibration_error:.3f}; {percent(found.balance)} of the experts in even use; the gate would abstain on "
        f"{found.abstained * 100:.1f} % of the test queries."
    )
    yield Table("Routes", note, ("expert", "weight", "first choice", "really best"), rows, (1, 2, 3))
    for title, side, counts in (
        ("Choices by slice", "slice", found.chosen_by_slice),
        ("Choices by best expert", "really best", found.chosen_by_best),
    ):
        if counts:
            cells = ((name, f"{sum(row):,}", *(f"{n:,}" for n in row)) for name, row in zip(found.experts, counts, strict=True))
            head = (side, "queries", *found.experts)
            yield Table(title, CHOICE_NOTE, head, tuple(cells), tuple(range(1, len(head))))


def _experts(report: Report) -> Table:
    rows = tuple((e.name, f"{e.target_tokens:,}", level(e.before), level(e.after)) for e in report.experts)
    head = ("expert", "test tokens", "perplexity before", "after")
    return Table("Experts", "Each on the test records of its own slice.", head, rows, (1, 2, 3))


def small_tables(report: Report) -> Iterator[Table]:
    """Times and versions, for whoever makes the report again."""
    if report.timings:
        rows = tuple((stage, f"{seconds:,.1f}") for stage, seconds in report.timings.items())
        yield Table("Time", "", ("stage", "seconds"), rows, (1,))
    if report.environment:
        yield Table("Environment", "", ("what", "value"), tuple((n, str(v)) for n, v in _flat(report.environment)))


def _flat(values: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Nested settings as dotted names."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, values
