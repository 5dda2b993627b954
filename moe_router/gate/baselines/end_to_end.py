"""A gate trained through the frozen mixture: the gradient of the mixture's own loss reaches nothing but the gate.

As in Hydra-β (github.com/SkunkworksAI/hydra-moe) and MoLE (Wu et al. 2024, arXiv:2404.13628), which train the gate's layers
over frozen LoRA experts. Here the gate is linear in the query's embedding, as every other gate sees it, begins as the slice
classifier, and learns from the records that no expert was trained on; the tune split says when to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from moe_router.experts.adapters import RoutedModel, SlotRoute
from moe_router.experts.encode import IGNORE, Example, collate
from moe_router.experts.nats import token_nats
from moe_router.experts.scoring import target_logits

EPOCHS = 3
ROWS = 16
"""Records of a step."""
AT_ONCE = 4
"""Of them in memory at once; their gradients are summed."""
RATE = 0.1
"""Adam's; the classifier's weights are of the order of 1 to 10."""
Linear = tuple[np.ndarray, np.ndarray]
"""Weight (experts, dimension) and bias (experts,)."""


def end_to_end(
    model: RoutedModel,
    examples: Sequence[Example],
    embeddings: np.ndarray,
    start: Linear,
    judge: Callable[[Linear], float],
    seed: int = 0,
) -> Linear:
    """The best by `judge` of the start and the gate after every epoch.

    *Shape:* embeddings (examples, dimension), unit length; the mixture is the softmax over all experts.
    """
    weight, bias = (torch.tensor(part, dtype=torch.float32, requires_grad=True) for part in start)
    x, random = torch.from_numpy(embeddings), np.random.default_rng(seed)
    optimiser = torch.optim.Adam([weight, bias], lr=RATE)
    best, least = start, judge(start)
    for _ in range(EPOCHS):
        order = random.permutation(len(examples))
        for chosen in (order[at : at + ROWS] for at in range(0, len(order), ROWS)):
            tokens = sum(examples[i].target_tokens for i in chosen)
            for part in (chosen[at : at + AT_ONCE] for at in range(0, len(chosen), AT_ONCE)):
                mixture = torch.softmax(x[part] @ weight.T + bias, 1)  # (rows, experts)
                loss = mixture_nats(model, [examples[i] for i in part], mixture) / tokens
                torch.autograd.backward(loss, inputs=[weight, bias])
            optimiser.step()
            optimiser.zero_grad()
        found = weight.detach().numpy().copy(), bias.detach().numpy().copy()
        nats = judge(found)
        if nats < least:
            best, least = found, nats
    return best


def mixture_nats(model: RoutedModel, examples: Sequence[Example], mixture: torch.Tensor) -> torch.Tensor:
    """Loss of all response tokens under each record's mixture, (rows, experts), and differentiable in it."""
    scale = model.gates(np.ones((1, mixture.shape[1]), dtype=np.float32))  # (1, R)
    always = torch.ones(len(mixture), model.shared_rank)
    spread = mixture.repeat_interleave(torch.tensor(model.expert_ranks), dim=1)
    gates = (torch.cat([always, spread], 1) * scale)[:, None].to(model.base.device, model.base.dtype)
    batch = collate([[example] for example in examples], model.base.eos, model.base.device)
    with model.routed(SlotRoute(None, gates, every=True)):
        return token_nats(target_logits(model.base.model, batch), batch.labels[batch.labels != IGNORE]).sum()
