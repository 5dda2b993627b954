"""Gradient checkpointing: keep each decoder layer's input only, compute the rest again on the way back.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". transformers' own switch needs the model in training
mode, which would wake the base's dropout and bitsandbytes' other kernels; here the base stays as it answers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from moe_router.errors import BaseModelError


@contextlib.contextmanager
def recomputing(
    model: nn.Module, active: bool = True, around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
) -> Iterator[None]:
    """Forward passes inside keep only the inputs of `model`'s decoder layers; backward must happen inside as well.

    `around` is what else the forward passes happen in: torch's function modes are off during backward, and have to be
    entered again for the second pass. Raises BaseModelError where transformers has not marked the layers of this architecture.
    """
    layers = decoder_layers(model) if active else []
    if active and not layers:
        raise BaseModelError(
            f"{type(model).__name__} has no layers that can be recomputed: set experts.gradient_checkpointing = false"
        )
    for layer in layers:
        # what is random in a layer is drawn from its own seed (Dropout), so no generator has to be rewound
        layer.forward = functools.partial(
            checkpoint,
            layer.forward,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (contextlib.nullcontext(), around()),
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers marks as fit for checkpointing."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
