"""The first layers of the base as a reader of queries: the mean of a prompt's hidden states, without adapters.

The trunk shares the base's weights but none of its modules, so it neither sees adapters that are attached to the base nor
waits for an engine that runs on it; nothing after its last layer is computed.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from moe_router.data.pieces import TURN
from moe_router.data.records import Message
from moe_router.errors import ConfigError
from moe_router.experts.adapters import GatedLinear
from moe_router.experts.base import Base
from moe_router.experts.encode import encode_prompt

LONGEST = 256
"""Last tokens of a prompt that are read."""
READ = 16 * LONGEST
"""Last characters that are tokenised for them."""


class Trunk:
    """The base up to a layer; safe to call from several threads."""

    def __init__(self, base: Base, layer: int, template: str) -> None:
        """`layer` counts from 1. Raises ConfigError when the base has fewer."""
        self._base, self._template, self._lock = base, template, threading.Lock()
        self._model, self._last = _cut(base.model, layer)
        self._found: torch.Tensor
        self._last.register_forward_hook(self._keep)

    @torch.inference_mode()
    def states(self, texts: Sequence[str]) -> np.ndarray:
        """Mean state of each text's prompt, as `query_text` gives texts; one at a time, so that company changes nothing.

        *Shape:* (texts, width) float32.
        """
        found = []
        for text in texts:
            asked = text[-READ:].encode("utf-8", "replace").decode().replace(TURN, "\n")
            tokens = encode_prompt([Message("user", asked)], self._base, self._template)[-LONGEST:] or [self._base.eos]
            with self._lock:
                self._model(input_ids=torch.tensor([tokens], device=self._base.device), use_cache=False)
                found.append(self._found[0].float().mean(0).cpu().numpy())
        return np.stack(found)

    def _keep(self, _: torch.nn.Module, __: Any, output: Any) -> None:
        self._found = output[0] if isinstance(output, tuple) else output  # (1, seq, width)


def _cut(model: torch.nn.Module, layer: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A copy of the decoder that ends after `layer` layers, and the last of these: the model's weights, no adapters."""
    decoder = model.base_model
    count = model.config.num_hidden_layers
    stack = next(each for each in decoder.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == count)
    if not 1 <= layer <= count:
        raise ConfigError(f"gate.hidden_layer = {layer}: the base has layers 1 to {count}")
    shared = {id(tensor): tensor for tensor in itertools.chain(decoder.parameters(), decoder.buffers())}
    for each in stack[:layer].modules():
        if isinstance(each, GatedLinear):
            shared[id(each)] = copy.deepcopy(each.base, shared)
    kept = torch.nn.ModuleList(copy.deepcopy(each, shared) for each in stack[:layer])
    cut = copy.deepcopy(decoder, shared | {id(stack): kept})
    cut.config.num_hidden_layers = layer
    return cut, kept[-1]
