"""Answers of the arms to the same test questions: side by side, scored where the data says what is right, and timed."""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
SAMPLED = 3
"""Questions that every answering arm answers `report.samples` times at temperature 1, each time from another seed."""
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
    sampled: tuple[int, ...] = ()
    """Those of them that are answered `samples` times."""
    samples: int = 0

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
            chosen=tuple(chosen),
            shown=tuple(bench.spaced(settings.examples, chosen)),
            measure=measure,
            settings=GenerationConfig(max_new_tokens=longest),
            sampled=tuple(bench.spaced(SAMPLED, chosen)) if settings.samples else (),
            samples=settings.samples,
        )

    def right(self, text: str, record: Record) -> bool:
        """Whether an answer is right by `measure`."""
        if self.measure == "key_fact_accuracy":
            return key_fact_found(text, record.meta["key_fact"])
        return final_answer(text) == final_answer(record.response)


@dataclass(frozen=True, eq=False)
class Answers:
    """One arm's answers."""

    texts: Mapping[int, str]
    """By test record."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Share of right answers, agreement and speed, under the names of Arm's fields."""
    samples: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Answers drawn to the same question again and again, by test record."""


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
        figures[questions.measure] = float(np.mean([questions.right(text, records[i]) for i, text in texts.items()]))
    samples = {i: _drawn(router, records[i], route_of(pool.library.names, mix, i), questions) for i in questions.sampled}
    return Answers(texts, figures | _consistency(samples, questions, records), samples)


def _drawn(router: Router, record: Record, route: Route, questions: Questions) -> list[str]:
    """Answers to one question, all at once, each from a seed of its own."""
    settings = (replace(questions.settings, temperature=1.0, seed=seed) for seed in range(questions.samples))
    streams = [router.stream(record.messages, one, route) for one in settings]
    return [stream.answer().text for stream in streams]


def _consistency(samples: Mapping[int, Sequence[str]], questions: Questions, records: Sequence[Record]) -> dict[str, float]:
    """How far an arm agrees with itself, each question counting alike."""
    if not samples:
        return {}
    counts = [Counter(map(final_answer, texts)) for texts in samples.values()]
    found = {
        "agreement": float(np.mean([max(count.values()) / questions.samples for count in counts])),
        "distinct_answers": float(np.mean([len(count) for count in counts])),
    }
    if questions.measure:
        right = [questions.right(text, records[i]) for i, texts in samples.items() for text in texts]
        found["sampled_right"] = float(np.mean(right))
    return found


def side_by_side(
    bench: Bench, questions: Questions, answers: Mapping[str, Answers], mixture: Mix, confidence: np.ndarray
) -> list[dict[str, Any]]:
    """Question, reference, every arm's answer and the mixture's route; `shown` marks those that the page shows."""
    rows: list[dict[str, Any]] = []
    for i in questions.chosen:
        record, route = bench.test.records[i], route_of(bench.library.names, mixture, i)
        row = {"question": record.prompt, "reference": record.response, "shown": i in questions.shown}
        row |= {"route": route.weights, "confidence": round(float(confidence[i]), 4)}
        row["answers"] = {name: found.texts[i] for name, found in answers.items()}
        if i in questions.sampled:
            row["samples"] = {name: list(found.samples[i]) for name, found in answers.items()}
        rows.append(row)
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
