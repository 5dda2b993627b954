"""eval: standard benchmarks through lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from moe_router.cli.common import Session, command, register
from moe_router.errors import ConfigError

DEFAULT_TASKS = "arc_easy,arc_challenge,hellaswag,mmlu,drop"
ROUTES = ("gate", "top1", "top2", "soft", "shared", "base")


@command(example="moe-router eval --tasks arc_easy,hellaswag --route base --route gate --limit 200")
@click.option("--tasks", default=DEFAULT_TASKS, show_default=True, help="Tasks of the harness, separated by commas.")
@click.option(
    "--route",
    "routes",
    type=click.Choice(ROUTES),
    multiple=True,
    default=("base", "gate"),
    show_default=True,
    help="How to answer; several stand side by side. `gate` may abstain, top1, top2 and soft never do.",
)
@click.option(
    "--num-fewshot", type=click.IntRange(min=0), default=None, help="Examples before each question. [default: task's]"
)
@click.option(
    "--limit", type=click.FloatRange(min=0), default=None, help="Documents of each task: a number, or a share below 1."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Rows of a batch.")
@click.option("--chat", is_flag=True, help="Put every question into the template that the experts were trained with.")
@click.option("--task-folder", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Folder of own task files.")
def _eval(
    session: Session,
    tasks: str,
    routes: tuple[str, ...],
    num_fewshot: int | None,
    limit: float | None,
    batch_size: int,
    chat: bool,
    task_folder: Path | None,
) -> None:
    """Run standard benchmarks on the library.

    Through EleutherAI's lm-evaluation-harness (the extra `eval`), which fetches its data from the Hugging Face hub unless
    a task file names local files. All options of the harness: python -m moe_router.report.harness run --help.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm-evaluation-harness is not installed: `pip install 'moe-router[eval]'`")
    with session.working():
        from moe_router.report.harness import evaluate

        found = evaluate(
            session.workspace.root,
            [name.strip() for name in tasks.split(",") if name.strip()],
            list(dict.fromkeys(routes)),
            task_folder=task_folder,
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=batch_size,
            apply_chat_template=chat,
        )
    figures = by_task(found)
    session.answer({"results": figures}, table(figures))


def by_task(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Task, then metric, then route: the harness's numbers turned round so that routes stand side by side."""
    made: dict[str, dict[str, dict[str, float]]] = {}
    for route, result in found.items():
        for task, metrics in result["results"].items():
            for metric, value in metrics.items():
                if isinstance(value, int | float):
                    made.setdefault(task, {}).setdefault(metric, {})[route] = value
    return made


def table(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    """One line for each task and metric, with its standard error where the harness gives one."""
    for task, metrics in figures.items():
        for metric, values in metrics.items():
            name, _, filtered = metric.partition(",")
            if not filtered or name.endswith("_stderr"):
                continue
            errors = metrics.get(f"{name}_stderr,{filtered}", {})
            cells = (f"{route} {value:.4f}" + _error(errors.get(route)) for route, value in values.items())
            yield f"{task:<28} {name:<16} {'   '.join(cells)}"


def _error(value: float | None) -> str:
    return "" if value is None else f" ± {value:.4f}"


eval_ = register(_eval, "eval")
