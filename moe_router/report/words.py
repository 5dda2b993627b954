"""Numbers as a reader takes them in, the same in every form of the report."""

from __future__ import annotations

from moe_router.report.arms import Arm, Comparison

PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
OUTCOMES = {"better": "better", "worse": "worse", "open": "no difference shown"}


def si(number: float, digits: int = 3) -> str:
    """`37.5 M`: a count with its SI prefix."""
    for scale, prefix in PREFIXES:
        if abs(number) >= scale * (1 - 0.5 * 10**-digits):
            return f"{_round(number / scale, digits)} {prefix}"
    return f"{number:g}"


def percent(share: float | None) -> str:
    """`84 %`, or nothing for None."""
    return "" if share is None else f"{share * 100:.0f} %"


def amount(row: Comparison) -> str:
    """`3.1 % lower` or `0.4 % higher`."""
    return f"{abs(row.relative) * 100:.1f} % {'lower' if row.relative < 0 else 'higher'}"


def interval(row: Comparison) -> str:
    """`-5.0 % to -1.2 %`."""
    return " to ".join(f"{edge * 100:+.{1 if abs(edge) >= 0.0005 else 3}f} %" for edge in row.ci95)


def p_value(row: Comparison) -> str:
    """`p = 0.012`, or a bound where it is smaller than three digits show."""
    return f"p = {row.p:.3f}" if row.p >= 0.0005 else "p < 0.001"


def level(perplexity: float) -> str:
    """A perplexity in four significant digits: near 1 the third after the point tells arms apart."""
    return _round(perplexity, 4)


def span(arm: Arm) -> str:
    """`1.10 to 1.12`: an arm's 95 % interval."""
    return " to ".join(level(edge) for edge in arm.ci95)


def money(price: float | None) -> str:
    """Three significant digits, without a currency; nothing for None."""
    return "" if price is None else f"{price:.3g}"


def _round(number: float, digits: int) -> str:
    whole = len(str(int(abs(number))))
    return f"{number:.{max(0, digits - whole)}f}"
