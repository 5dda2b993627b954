"""The base alone as a writer: it continues prompts, by its own sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moe_router.config import GenerationConfig
from moe_router.data.records import Message
from moe_router.data.templates import template
from moe_router.experts.base import Base


class BaseWriter:
    """A `data.synthesize.Writer` over a loaded base. With a template other than `plain` a prompt is put as a user's turn."""

    def __init__(self, base: Base, generation: GenerationConfig, template_name: str = "plain") -> None:
        self.id = base.id
        self._base, self._generation = base, generation
        self._style = None if template_name == "plain" else template(template_name, base.tokenizer)

    def write(self, prompts: Sequence[str], stop: Sequence[str], seed: int) -> list[str]:
        """What follows each prompt, up to the first of `stop` or the end of the text; of a text that reaches the limit
        the last line is left out, as it may break off anywhere.

        The same prompts, seed and machine give the same texts.
        """
        return [self._ended(tokens, stop) for tokens in self.tokens(prompts, seed)]

    @torch.inference_mode()
    def tokens(self, prompts: Sequence[str], seed: int) -> list[list[int]]:
        """What follows each prompt, in tokens, to the limit; from the end of the text on padding."""
        base, settings = self._base, self._generation
        rows = [[*base.opening, *base.tokenizer(self._text(p), add_special_tokens=False)["input_ids"]] for p in prompts]
        rows = [row[-(base.context - settings.max_new_tokens) :] for row in rows]
        width = max(map(len, rows))
        tokens = torch.full((len(rows), width), base.eos)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for at, row in enumerate(rows):  # padded on the left, so that every row continues at its end
            tokens[at, width - len(row) :] = torch.tensor(row)
            mask[at, width - len(row) :] = 1
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p} if settings.temperature else {}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = base.model.generate(
                tokens.to(base.device),
                attention_mask=mask.to(base.device),
                max_new_tokens=settings.max_new_tokens,
                do_sample=bool(sampling),
                pad_token_id=base.eos,
                eos_token_id=base.eos,
                **sampling,
            )
        return made[:, width:].tolist()

    def _text(self, prompt: str) -> str:
        """The prompt as this base reads one; its last line is the beginning of the answer."""
        if self._style is None:
            return prompt
        task, _, opening = prompt.rpartition("\n")
        return self._style.prompt([Message("user", task)]) + self._style.response(opening)

    def _ended(self, tokens: list[int], stop: Sequence[str]) -> str:
        ends = self._base.eos in tokens
        text = self._base.tokenizer.decode(tokens[: tokens.index(self._base.eos)] if ends else tokens, skip_special_tokens=True)
        found = [at for one in stop if (at := text.find(one)) >= 0]
        if found:
            return text[: min(found)]
        return text if ends else text.rpartition("\n")[0]
