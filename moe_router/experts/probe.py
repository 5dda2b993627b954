"""What a number of slices gains, measured by adapters on the embedded base; `data.choose` decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moe_router.config import BaseConfig, Config
from moe_router.data.records import Record
from moe_router.experts.base import Base, load_base
from moe_router.experts.encode import encode
from moe_router.experts.scoring import score_examples
from moe_router.experts.train import Plan, Split, make_trainer

EPOCHS = 2.0
"""Most passes over the sample."""
STEP_ROWS = 8
"""Rows of a step over all adapters: with equal batches, few slices do not win by more steps alone."""


class AdapterProbe:
    """A `data.choose.Probe`: the recipe of the settings, on the embedded base, whatever base the experts will have."""

    def __init__(self, config: Config) -> None:
        experts = replace(config.experts, epochs=min(config.experts.epochs, EPOCHS), search_rates=False)
        self._config = replace(config, base=BaseConfig(), experts=experts).override({"data": {"template": "plain"}})
        self._base: Base | None = None

    def nats(
        self, train: Sequence[Record], labels: np.ndarray, held: Sequence[Record], held_labels: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Loss and response tokens of every held-out record under the shared adapter and that of its slice.

        A slice without a record in the sample has no adapter: there the shared one answers alone.
        *Shape:* labels (train,), held_labels (held,), both below k → (held,) twice.
        """
        self._base = self._base or load_base(self._config.base)
        present = sorted(set(labels.tolist()))
        part = Split(train, np.searchsorted(present, labels), np.zeros((len(train), 1), np.float32))
        rows = max(1, STEP_ROWS // len(present))
        plan = Plan(tuple(f"slice {label}" for label in present), part, part, self._config, "probe", rows)
        weights = (held_labels[:, None] == np.array(present)).astype(np.float32)  # (held, adapters)
        trainer = make_trainer(self._base, plan)
        with trainer.model as model:
            trainer.run()
            examples = encode(held, self._base, "plain", self._config.experts.max_tokens)
            scores = score_examples(model, examples, weights)
        return scores.nats, scores.tokens
