"""Numbers in words."""

import pytest

from moe_router.report.arms import Comparison
from moe_router.report.words import interval, level, money, p_value, percent, si


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (12, "12"), (999.6e3, "1.00 M"), (33.44e6, "33.4 M"), (5e12, "5.00 T"), (381_000, "381 k"), (2.5e18, "2.50 E")],
)
def test_counts_are_short(number, text):
    assert si(number) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.1, "1.100"), (9.6349, "9.635"), (93.79, "93.79"), (125.54, "125.5"), (81234.5, "81234")]
)
def test_perplexities_keep_the_digits_that_tell_arms_apart(value, text):
    assert level(value) == text


@pytest.mark.parametrize(("p", "words"), [(0.0421, "p = 0.042"), (0.0002, "p < 0.001"), (1.0, "p = 1.000")])
def test_p_values_are_never_zero(p, words):
    assert p_value(Comparison("gate_top2", "base", -0.1, (-0.2, -0.05), p)) == words


def test_an_interval_that_nearly_touches_0_shows_on_which_side():
    assert interval(Comparison("gate_top2", "gate_soft", -0.01, (-0.02, -0.0002), 0.04)) == "-2.0 % to -0.020 %"


def test_what_is_not_known_is_blank():
    assert (percent(None), money(None)) == ("", "")
    assert (percent(0), money(0.00168)) == ("0 %", "0.00168")
