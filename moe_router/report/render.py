"""The report as files: report.json, report.md, and the figure as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_router.report.arms import Report
from moe_router.report.verdict import amount, interval, p_value
from moe_router.workspace import write_json, write_text

FIGURE = "perplexity-flops"
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
LEGEND = (
    "FLOPs count 2 per multiply-add: *executed* is what the code computes for a token, *active* what the route needs.",
    "Parameters are the adapters': *held* in memory, *used* by a query.",
)
OUTCOMES = {"better": "better", "worse": "worse", "open": "no difference shown"}


@dataclass(frozen=True)
class Files:
    """Where a report was written."""

    json: Path
    markdown: Path
    png: Path
    svg: Path


def save(report: Report, folder: Path) -> Files:
    """Write the report into `folder`: the figures and the Markdown first, report.json, which marks it complete, last."""
    from moe_router.report.plot import save_figure

    files = Files(folder / "report.json", folder / "report.md", folder / f"{FIGURE}.png", folder / f"{FIGURE}.svg")
    for path in (files.png, files.svg):
        save_figure(report.arms, path)
    write_text(files.markdown, markdown(report, files.png.name))
    write_json(files.json, report.to_json())
    return files


def markdown(report: Report, figure: str = f"{FIGURE}.png") -> str:
    """The report as one Markdown page; `figure` is the picture's name beside it."""
    return "\n".join([*_opening(report, figure), *_tables(report), *_closing(report)]).rstrip("\n") + "\n"


def _opening(report: Report, figure: str) -> Iterator[str]:
    yield from ("# Mixture against dense adapters", "", f"**{report.verdict.headline}**", "")
    yield from (f"- {line}" for line in (*report.verdict.sentences, *report.verdict.remarks))
    yield from ("", f"![{alt_text(report)}]({figure})", "")


def _tables(report: Report) -> Iterator[str]:
    yield from ("## Arms", "", "All on the same held-out response tokens; lower perplexity is better.", "")
    yield from arms_table(report)
    yield from ("", *LEGEND, "")
    yield from (f"- `{arm.id}`: {arm.kind.explanation}" for arm in report.arms)
    if report.comparisons:
        yield from ("", "## Comparisons", "", "Relative difference in perplexity, by a paired bootstrap over records.", "")
        rows = [
            (f"`{c.arm}`", f"`{c.rival}`", amount(c), interval(c), p_value(c), OUTCOMES[c.outcome]) for c in report.comparisons
        ]
        yield from table(("arm", "rival", "perplexity", "95 % interval", "p", "arm is"), rows)
    if report.experts:
        yield from ("", "## Experts", "", "Each on the test records of its own slice.", "")
        rows = [(e.name, f"{e.target_tokens:,}", f"{e.before:.2f}", f"{e.after:.2f}") for e in report.experts]
        yield from table(("expert", "test tokens", "perplexity before", "after"), rows, right=(1, 2, 3))


def _closing(report: Report) -> Iterator[str]:
    if report.notes:
        yield from ("", "## Not tested, and limits", "", *(f"- {note}" for note in report.notes))
    if report.timings:
        rows = [(stage, f"{seconds:,.1f}") for stage, seconds in report.timings.items()]
        yield from ("", "## Time", "", *table(("stage", "seconds"), rows, right=(1,)))
    if report.environment:
        rows = [(name, str(value)) for name, value in _flat(report.environment)]
        yield from ("", "## Environment", "", *table(("what", "value"), rows))


def arms_table(report: Report) -> list[str]:
    """One Markdown row per arm; columns that no arm has are left out."""
    optional = [
        ("right facts", [_percent(arm.key_fact_accuracy) for arm in report.arms]),
        ("tokens/s", ["" if arm.tokens_per_second is None else f"{arm.tokens_per_second:,.0f}" for arm in report.arms]),
        ("learning rate", ["" if arm.learning_rate is None else f"{arm.learning_rate:g}" for arm in report.arms]),
        ("trained tokens", ["" if arm.trained_tokens is None else f"{arm.trained_tokens:,}" for arm in report.arms]),
    ]
    columns = {
        "arm": [f"`{arm.id}`" for arm in report.arms],
        "perplexity": [f"{arm.perplexity:.2f}" for arm in report.arms],
        "95 % interval": [f"{arm.ci95[0]:.2f} to {arm.ci95[1]:.2f}" for arm in report.arms],
        "FLOPs/token executed": [si(arm.flops_per_token) for arm in report.arms],
        "active": [si(arm.active_flops_per_token) for arm in report.arms],
        "training FLOPs": [si(arm.train_flops) if arm.train_flops else "" for arm in report.arms],
        "parameters held": [si(arm.adapter_params) for arm in report.arms],
        "used": [si(arm.active_adapter_params) for arm in report.arms],
        **{name: cells for name, cells in optional if any(cells)},
    }
    return table(tuple(columns), list(zip(*columns.values(), strict=True)), right=range(1, len(columns)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """A Markdown table; columns in `right` are aligned right."""
    rule = ["---:" if column in set(right) else "---" for column in range(len(head))]
    return ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in (head, rule, *rows)]


def alt_text(report: Report) -> str:
    """The figure in words."""
    points = "; ".join(f"{a.label} {a.perplexity:.2f} at {si(a.flops_per_token)}" for a in report.arms)
    return f"Perplexity against FLOPs per token, lower left is better: {points}.".replace("[", "(").replace("]", ")")


def si(number: float, digits: int = 3) -> str:
    """`37.5 M`: a count with its SI prefix."""
    for scale, prefix in PREFIXES:
        if abs(number) >= scale * (1 - 0.5 * 10**-digits):
            return f"{_round(number / scale, digits)} {prefix}"
    return f"{number:g}"


def _round(number: float, digits: int) -> str:
    whole = len(str(int(abs(number))))
    return f"{number:.{max(0, digits - whole)}f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}".replace("%", " %")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _flat(values: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Nested settings as dotted names."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, values
