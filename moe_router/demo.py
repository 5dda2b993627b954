"""The main job on the sample company, sized for two CPU cores.

docs/demo.md has the quick budget, stage by stage, and what was measured. The learning rates were searched on the tune split
of the sample's seed 1 by benchmarks/demo_rates.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_router.config import Config, GenerationConfig
from moe_router.errors import ConfigError
from moe_router.pipeline import BuildResult, build
from moe_router.progress import Progress, Silent
from moe_router.workspace import Workspace

if TYPE_CHECKING:
    from moe_router.inference import Answer

BUDGETS = {"quick": 1.5, "full": 6.0}
"""Epochs."""
RATES = {"learning_rate": 1e-3, "shared_learning_rate": 4e-3, "dense_learning_rate": 4e-3}
QUESTIONS = 3


@dataclass(frozen=True)
class DemoResult:
    """What the demo built, and three answers."""

    built: BuildResult
    answers: list[tuple[str, str, Answer]]
    """Question, reference answer, answer."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        answers = [
            {"question": question, "expected": expected, **answer.to_json()} for question, expected, answer in self.answers
        ]
        return self.built.to_json() | {"answers": answers, "total_seconds": round(self.seconds, 1)}

    def lines(self) -> Iterable[str]:
        from moe_router.report.terminal import AnswerRow, answers_table, lines

        yield from self.built.lines()
        rows = [AnswerRow(q, a.text, a.route.weights, a.route.confidence, expected) for q, expected, a in self.answers]
        yield from lines(answers_table(rows))
        root = self.built.workspace.root
        yield f"Done in {self.seconds:.0f} s. Next:"
        question = self.answers[0][0]
        yield f'  moe-router ask "{question}" --workspace {root}'
        yield f'  moe-router route "{question}" "What is the capital of France?" --workspace {root}'
        yield "  moe-router build YOUR_EXPORT.csv --workspace my-company"


def demo_config(budget: str) -> Config:
    """The demo's settings: the defaults, but for training time and fixed learning rates."""
    if budget not in BUDGETS:
        raise ConfigError(f"budget {budget!r}: use one of {', '.join(BUDGETS)}")
    return Config().override({"experts": {"epochs": BUDGETS[budget], "search_rates": False} | RATES})


def run_demo(workspace: Workspace, budget: str = "quick", seed: int = 0, progress: Progress | None = None) -> DemoResult:
    """Write the sample company's exports if they are not there, build, and answer three held-out questions."""
    from moe_router.data.records import load_records
    from moe_router.data.sample import write_sample
    from moe_router.experts.base import load_base
    from moe_router.inference import Router

    progress = progress or Silent()
    start = time.perf_counter()
    config = demo_config(budget)
    progress.stage("load base")
    base = load_base(config.base)
    built = build(workspace, write_sample(workspace.sample, seed), config, progress, base)
    router = Router.load(workspace.experts, base=base, generation=GenerationConfig(max_new_tokens=32))
    asked = [r for r in load_records(workspace.records) if r.split == "test"][:: 1 + 250 // (QUESTIONS + 1)][:QUESTIONS]
    answers = router.ask_many([r.messages for r in asked])
    found = [(r.prompt, r.response, answer) for r, answer in zip(asked, answers, strict=True)]
    return DemoResult(built, found, time.perf_counter() - start)
