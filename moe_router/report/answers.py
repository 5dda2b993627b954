"""Answers of the arms to the same test questions: side by side, scored where the data says what is right, and timed."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moe_router.config import GenerationConfig
from moe_router.data.records import Record
from moe_router.data.sample import key_fact_found
from moe_router.inference.engine import Engine
from moe_router.inference.router import Router
from moe_router.inference.routing import Route
from moe_router.report.bench import Bench
from moe_router.report.mixes import Mix
from moe_router.report.pool import Pool

FINAL = "####"
"""What stands before the final answer in GSM8K's responses, and in those written after its manner."""
SHORT_WORDS = 8
"""Responses whose first line has this many words or fewer can be right or wrong as a whole."""
CHECKABLE = 0.75
"""Share of responses that must have a final answer, or be short, for a share of right answers to mean something."""
NUMBER_SIGNS = ".-−%"
MOST_TOKENS = 128
SPARE_TOKENS = 4
QUANTILE = 0.95
BATCH = 64


@dataclass(frozen=True, eq=False)
class Questions:
    """Which test records are answered, and how an answer is judged."""

    chosen: tuple[int, ...]
    """Test records that every answering arm answers."""
    shown: tuple[int, ...]
    """Those of them that stand side by side in the report."""
    measure: str
    """`key_fact_accuracy`, `exact_match`, or nothing where the data says of no answer whether it is right."""
    settings: GenerationConfig

    @classmethod
    def of(cls, bench: Bench) -> Questions:
        """All records with a key fact; else `report.answered` of them, evenly spaced."""
        records, settings = bench.test.records, bench.config.report
        facts = [i for i, record in enumerate(records) if record.meta.get("key_fact")]
        chosen = facts or bench.spaced(max(settings.answered, settings.examples))
        lengths = bench.target_tokens[chosen] if chosen else np.zeros(1)
        longest = min(MOST_TOKENS, int(np.quantile(lengths, QUANTILE)) + SPARE_TOKENS)
        measure = "key_fact_accuracy" if facts else "exact_match" if _checkable(records) else ""
        return cls(
            tuple(chosen), tuple(bench.spaced(settings.examples, chosen)), measure, GenerationConfig(max_new_tokens=longest)
        )


@dataclass(frozen=True, eq=False)
class Answers:
    """One arm's answers."""

    texts: Mapping[int, str]
    """By test record."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Share of right answers and speed, under the names of Arm's fields."""


def answer(pool: Pool, mix: Mix, questions: Questions) -> Answers:
    """Greedy answers under the arm's mixture."""
    records = pool.bench.test.records
    router = Router(pool.library, Engine(pool.model), None, questions.settings, cut=True)
    texts: dict[int, str] = {}
    tokens, start = 0, time.perf_counter()
    for at in range(0, len(questions.chosen), BATCH):
        part = questions.chosen[at : at + BATCH]
        routes = [route_of(pool.library.names, mix, i) for i in part]
        found = router.ask_many([records[i].messages for i in part], routes=routes)
        texts |= {i: answer.text for i, answer in zip(part, found, strict=True)}
        tokens += sum(answer.usage.completion_tokens for answer in found)
    figures = {"generated_per_second": tokens / (time.perf_counter() - start)}
    if questions.measure:
        right = [_right(questions.measure, text, records[i]) for i, text in texts.items()]
        figures[questions.measure] = sum(right) / len(right)
    return Answers(texts, figures)


def side_by_side(
    bench: Bench, questions: Questions, answers: Mapping[str, Answers], mixture: Mix, confidence: np.ndarray
) -> list[dict[str, Any]]:
    """Question, reference, every arm's answer and the mixture's route, of the records to show."""
    rows = []
    for i in questions.shown:
        record, route = bench.test.records[i], route_of(bench.library.names, mixture, i)
        row = {"question": record.prompt, "reference": record.response, "route": route.weights}
        rows.append(
            row
            | {
                "confidence": round(float(confidence[i]), 4),
                "answers": {name: found.texts[i] for name, found in answers.items()},
            }
        )
    return rows


def route_of(names: Sequence[str], mix: Mix, record: int) -> Route:
    """One record's mixture as a route of the router, largest weight first."""
    row = mix.weights[record]
    order = [i for i in np.argsort(-row, kind="stable") if row[i]]
    return Route({names[i]: float(row[i]) for i in order}, 1.0, False, bool(mix.shared[record]))


def final_answer(text: str) -> str:
    """What an answer comes to: the part after the last `####`, else its first line; no case, punctuation or spacing."""
    chosen = text.rpartition(FINAL)[2] if FINAL in text else next(iter(text.strip().splitlines()), "")
    words = (_bare(word) for word in unicodedata.normalize("NFKC", chosen).casefold().split())
    return " ".join(word for word in words if word)


def _bare(word: str) -> str:
    """Letters and digits, and the signs that change a number: 1.5 is not 15, -3 not 3, 40% not 40."""
    if any(c.isdigit() for c in word):
        return "".join(c for c in word.rstrip(".") if c.isalnum() or c in NUMBER_SIGNS)
    return "".join(c for c in word if unicodedata.category(c)[0] not in "PC")


def _checkable(records: Sequence[Record]) -> bool:
    """Whether most responses have a final answer or are short ones."""
    checkable = [FINAL in r.response or 0 < len(final_answer(r.response).split()) <= SHORT_WORDS for r in records]
    return bool(checkable) and sum(checkable) >= CHECKABLE * len(checkable)


def _right(measure: str, text: str, record: Record) -> bool:
    if measure == "key_fact_accuracy":
        return key_fact_found(text, record.meta["key_fact"])
    return final_answer(text) == final_answer(record.response)
