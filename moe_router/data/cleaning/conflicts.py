"""Answers to one prompt that cannot both be right."""

from __future__ import annotations

import re

from moe_router.data.cleaning.text import words

_FIGURE = re.compile(r"\d+(?:[.,:]\d+)*")
_NAME = re.compile(r"(?<=[^\W\d_] )[A-ZÀ-ÖØ-Þ][\w-]+|(?<=, )[A-ZÀ-ÖØ-Þ][\w-]+")
_YES = frozenset({"yes", "yep", "yeah", "certainly", "sim", "claro"})
_NO = frozenset({"no", "nope", "never", "não", "nao", "nunca"})
_DENIAL = frozenset(
    {"not", "no", "never", "cannot", "nor", "neither", "none", "nothing", "without"}
    | {"isn", "aren", "wasn", "weren", "don", "doesn", "didn", "won", "wouldn", "couldn", "shouldn"}
    | {"não", "nao", "nunca", "nem", "jamais", "nenhum", "nenhuma", "nada", "sem"}
)
"""`don` and the like are what `don't` begins with."""
FEWEST_WORDS = 3
"""A shorter prompt, such as a greeting, may be answered in many ways."""
SAME_FRAME = 0.5
"""Share of words that two answers have in common when one seems to be the other with something changed."""
SAME_BUT_DENIED = 0.75
"""The same where one denies: answers that share half their words may each have a `don't hesitate to call`."""


def disagreement(prompt: str, one: str, other: str) -> str:
    """What two answers to the prompt disagree about, or nothing.

    They do when each gives figures that the other lacks, when one says yes and the other no, and when they share their
    frame and one denies what the other says or each names something that the other does not. Other contradictions take
    understanding, and are not found.
    """
    if len(words(prompt)) < FEWEST_WORDS:
        return ""
    figures = _differ(set(_FIGURE.findall(one)), set(_FIGURE.findall(other)))
    if figures:
        return figures
    first, second = words(one), words(other)
    opening = {first[0] if first else "", second[0] if second else ""}
    if opening & _YES and opening & _NO:
        return "yes ≠ no"
    common, either = set(first) & set(second), set(first) | set(second)
    if not either or len(common) < SAME_FRAME * len(either):
        return ""
    denied = bool(_DENIAL & (set(first) - common)) != bool(_DENIAL & (set(second) - common))
    if denied and len(common) >= SAME_BUT_DENIED * len(either):
        return "one denies what the other says"
    return _differ(set(_NAME.findall(one)), set(_NAME.findall(other)))


def _differ(one: set[str], other: set[str]) -> str:
    """`30 ≠ 14` when each set has something of its own, or nothing."""
    left, right = sorted(one - other), sorted(other - one)
    return f"{', '.join(left[:3])} ≠ {', '.join(right[:3])}" if left and right else ""
