"""The loss of single tokens, in as little memory as the logits themselves."""

from __future__ import annotations

from typing import Any

import torch

CHUNK_NUMBERS = 1 << 24
"""Logits that are in fp32 at once: 64 MiB of them."""


class _TokenNats(torch.autograd.Function):
    """Cross-entropy in fp32 over logits of any type, a chunk of tokens at a time.

    torch's own holds the logits in fp32, their log-softmax and two gradients: with 32,000 words and bf16 logits 18 bytes
    for each of them at once, here 4.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total = torch.cat([part.float().logsumexp(-1) for part in _chunks(logits)])  # (targets,)
        ctx.save_for_backward(logits, labels, total)
        return total - logits.gather(1, labels[:, None])[:, 0].float()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, labels, total = ctx.saved_tensors
        out = torch.empty_like(logits)
        at = 0
        for part in _chunks(logits):
            end = at + len(part)
            probabilities = part.float().sub_(total[at:end, None]).exp_()
            probabilities[torch.arange(len(part), device=grad.device), labels[at:end]] -= 1
            out[at:end] = probabilities.mul_(grad[at:end, None])
            at = end
        return out, None


def token_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each token, in fp32.

    *Shape:* logits (targets, vocabulary), labels (targets,) → (targets,).
    """
    return _TokenNats.apply(logits, labels)


def _chunks(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return logits.split(max(1, CHUNK_NUMBERS // logits.shape[-1])) if len(logits) else (logits,)
