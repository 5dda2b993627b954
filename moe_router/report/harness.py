"""The library as a model of EleutherAI's lm-evaluation-harness (Gao et al. 2024): standard benchmarks under the gate.

Importing this module registers `moe-router` with the harness. All contact with lm_eval is here; its own Hugging Face
model does the batching, scoring and generating, so without adapters both give the same numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from moe_router.data.embed import CONTEXT_CHARACTERS, query_text
from moe_router.data.records import Message
from moe_router.data.templates import template
from moe_router.errors import ConfigError
from moe_router.experts.base import load_base
from moe_router.experts.library import Library
from moe_router.inference.routing import Selector
from moe_router.workspace import Workspace

ROUTES = ("gate", "top1", "top2", "soft", "shared", "base")
"""`gate` answers as the router does, abstaining included; the next three never abstain; the last two need no gate."""
FETCHED = "the harness fetches it from the Hugging Face hub unless it was fetched before, or a task file names local files"
Mixture = tuple[float, ...]
"""Each expert's weight, then that of the shared one."""


@register_model("moe-router")
class RouterLM(HFLM):
    """The experts of a workspace, mixed for every request by what stands before the text to score or to write.

    The gate sees the last user turns of a chat, or the last CONTEXT_CHARACTERS of a plain prompt: few-shot examples come
    before the question, and the embedder's window is short. It never sees a continuation that is scored. A text
    whose perplexity is taken has no prompt: there the gate abstains.
    """

    def __init__(
        self,
        workspace: str = ".",
        route: str = "gate",
        batch_size: int | str = 16,
        device: str | None = None,
        max_length: int | None = None,
        **more: Any,
    ) -> None:
        """`workspace` holds the library, `route` is one of ROUTES; `more` goes to the harness's HFLM.

        Raises ConfigError for another route or batch size, LibraryError and BaseModelError for what cannot be opened.
        """
        if not str(batch_size).isdigit():
            raise ConfigError(f"batch_size = {batch_size!r}: give a number of rows")
        self.library = Library.load(Workspace.find(workspace).experts)
        cuda = (device or "").startswith("cuda")  # the harness asks for it by default, wherever it runs
        self.opened = load_base(self.library.base, None if cuda and not torch.cuda.is_available() else device)
        self.routed_model = self.library.open(self.opened)
        super().__init__(
            pretrained=self.opened.model,
            tokenizer=self.opened.tokenizer,
            batch_size=batch_size,
            max_length=max_length or self.opened.context,
            **more,
        )
        self._style = template(self.library.template, self.opened.tokenizer)
        self._selector: Selector | None = None
        self._known: dict[tuple[str, str], Mixture] = {}
        self._asked: dict[str, str] = {}
        self._table: Mapping[tuple[int, ...], Mixture] = {}
        self._contexts: Sequence[str] = ()
        self.route = route

    @property
    def route(self) -> str:
        """How requests are routed from now on, one of ROUTES."""
        return self._route

    @route.setter
    def route(self, name: str) -> None:
        if name not in ROUTES:
            raise ConfigError(f"route = {name!r}: use one of {', '.join(ROUTES)}")
        if name not in ("shared", "base") and self._selector is None:
            self._selector = Selector.load(self.library)
        self._route = name

    def mixtures(self, texts: Sequence[str]) -> list[Mixture]:
        """The mixture of each request, by the text that stands before what is scored or written."""
        queries = [self._asked.get(text, text[-CONTEXT_CHARACTERS:]) for text in texts]
        new = [query for query in dict.fromkeys(queries) if (self.route, query) not in self._known]
        for query, mixture in zip(new, self._decide(new), strict=True):
            self._known[self.route, query] = mixture
        return [self._known[self.route, query] for query in queries]

    def _decide(self, queries: Sequence[str]) -> list[Mixture]:
        names, shared = self.library.names, float(self.library.has_shared)
        if self._selector is None or self.route in ("shared", "base"):
            return [(*[0.0] * len(names), shared * (self.route == "shared"))] * len(queries)
        if self.route == "gate":
            return [(*found.vector(names).tolist(), float(found.shared)) for found in self._selector.route(queries)]
        weights = self._selector.gate.decide(self._selector.embedder.encode(queries), self.route, abstain=False).weights
        blank = np.array([not query.strip() for query in queries], dtype=bool)
        return [(*row, shared) for row in np.where(blank[:, None], 0, weights).tolist()]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation in the template that the experts were trained with; the gate sees its user turns."""
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        if add_generation_prompt:
            text = self._style.prompt(messages)
        else:
            text = self._style.prompt(messages[:-1]) + self._style.response(messages[-1].content)
        self._asked[text] = query_text(messages)
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Name of the library's template, for the harness's record; None where it is not applied."""
        return self._style.name if chat_template else None

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        found = {"base": self.opened.id, "base_digest": self.opened.digest, "library_digest": self.library.digest}
        return found | {"route": self.route, "model_num_parameters": self.model.num_parameters()}

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        before = [pair[0] if pair else "" for pair, _, _ in requests]  # a text whose perplexity is taken has no prompt
        keys = [_key((context + target)[-(self.max_length + 1) :][:-1]) for _, context, target in requests]
        answers: list[Any] = [None] * len(requests)
        for table, chosen in rounds(keys, self.mixtures(before)):
            self._table = table
            part = super()._loglikelihood_tokens([requests[i] for i in chosen], disable_tqdm, override_bs)
            for i, answer in zip(chosen, part, strict=True):
                answers[i] = answer
        return answers

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """*Shape:* inps (rows, seq) → (rows, seq, vocabulary)."""
        with self._mixed([self._table[_key(row)] for row in inps.tolist()]):
            return super()._model_call(inps, *args, **kwargs)

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """As in HFLM, which calls it with the prompts of a batch just before it generates from them."""
        self._contexts = strings
        return super().tok_batch_encode(strings, *args, **kwargs)

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """*Shape:* context (rows, seq) → (rows, seq + new tokens)."""
        with self._mixed(self.mixtures(self._contexts)):
            return super()._model_generate(context, *args, **kwargs)

    def _mixed(self, mixtures: Sequence[Mixture]) -> contextlib.AbstractContextManager[None]:
        rows = np.array(mixtures, dtype=np.float32)  # (rows, experts + 1)
        return self.routed_model.routed(self.routed_model.route(rows[:, :-1], rows[:, -1]))


def rounds(
    keys: Sequence[tuple[int, ...]], mixtures: Sequence[Mixture]
) -> Iterator[tuple[dict[tuple[int, ...], Mixture], list[int]]]:
    """Requests by index in as few rounds as keep those of equal tokens and different mixtures apart: mostly one.

    A row of a batch is known by its tokens alone, and two requests may divide one text at different places.
    """
    found: list[tuple[dict[tuple[int, ...], Mixture], list[int]]] = []
    for index, (key, mixture) in enumerate(zip(keys, mixtures, strict=True)):
        free = next((r for r in found if r[0].get(key, mixture) == mixture), None)
        if free is None:
            free = ({}, [])
            found.append(free)
        free[0][key] = mixture
        free[1].append(index)
    yield from found


def _key(tokens: Sequence[int]) -> tuple[int, ...]:
    """Tokens without the zeros that HFLM pads rows with on the right."""
    end = len(tokens)
    while end and tokens[end - 1] == 0:
        end -= 1
    return tuple(tokens[:end])


def evaluate(
    workspace: Path,
    tasks: Sequence[str],
    routes: Sequence[str] = ("gate",),
    *,
    task_folder: Path | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """The harness's results of every route, the base loaded once; `options` are those of its `simple_evaluate`.

    `task_folder` holds task files beside the harness's own. Raises ConfigError for a task that is not known.
    """
    from lm_eval import simple_evaluate

    manager, batch_size = _task_manager(tasks, task_folder), options.pop("batch_size", 16)
    made: dict[str, dict[str, Any]] = {}
    model = RouterLM(str(workspace), routes[0], batch_size)
    with model.routed_model:
        for route in routes:
            model.route = route
            try:
                made[route] = simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, **options)
            except (FileNotFoundError, ConnectionError) as error:
                raise ConfigError(f"the data of {', '.join(tasks)} cannot be had ({error}): {FETCHED}") from error
    return made


def _task_manager(tasks: Sequence[str], task_folder: Path | None) -> Any:
    """With the harness's own tasks, which take a while to list, only where the folder does not hold them all."""
    from lm_eval.tasks import TaskManager

    folder = None if task_folder is None else str(task_folder)
    manager = TaskManager(include_path=folder, include_defaults=False)
    if all(manager.match_tasks([name]) for name in tasks):
        return manager
    manager = TaskManager(include_path=folder)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise ConfigError(f"lm_eval knows no task {', '.join(unknown)}: `lm_eval ls tasks` lists them, --task-folder adds some")
    return manager


def main() -> None:
    """The harness's own command line, with this model in its registry: `python -m moe_router.report.harness`."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
