"""What an answer and a training run cost: FLOPs, bytes and parameters, one short formula each.

A multiply-add is 2 FLOPs. Only products are counted (linear layers, attention, adapters, gate, embedder); norms,
activations, softmax and the gating of the rank axis grow with d where the products grow with d², and are left out.
docs/costs.md derives every formula; the tests check them against torch.utils.flop_counter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_router.errors import BaseModelError
from moe_router.memory import BF16_BYTES, NF4_BITS

if TYPE_CHECKING:
    from torch import nn

Linears = Sequence[tuple[int, int]]
"""(d_in, d_out) of linear layers."""

ATTENTION_BACKWARD = 2
"""Attention's backward over its forward: gradients of queries, keys, weights and values, four products beside two."""


@dataclass(frozen=True)
class ModelShape:
    """The dimensions of a transformer that its cost depends on."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    """Width of the output head; 0 for a model without one."""
    gated: bool
    """Whether the MLP has a gate projection beside up and down."""
    linears: tuple[tuple[int, int], ...]
    """(d_in, d_out) of every linear layer of the model but the output head."""
    entry: tuple[tuple[int, int], ...]
    """Those of `linears` that read the token embeddings: nothing before them trains, so their input needs no gradient."""
    other_params: int
    """Parameters outside `linears`: embeddings, output head, norms, biases."""

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """From a transformers config of a Llama-like decoder: q, k, v, o and a gated MLP, RMS norms, no biases."""
        config = config.get_text_config()
        d, f, n = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        heads, kv_heads, head_dim = _attention(config)
        q, kv = heads * head_dim, kv_heads * head_dim
        entry = ((d, q), (d, kv), (d, kv))
        embeddings = config.vocab_size * d * (1 if config.tie_word_embeddings else 2)
        return cls(
            hidden=d,
            layers=n,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=f,
            vocab=config.vocab_size,
            gated=True,
            linears=(*entry, (q, d), (d, f), (d, f), (f, d)) * n,
            entry=entry,
            other_params=embeddings + (2 * n + 1) * d,
        )

    @classmethod
    def from_model(cls, model: nn.Module) -> ModelShape:
        """From a loaded transformers model of any architecture built of linear layers, 4-bit ones included.

        Attention's dimensions come from its config. A forward over two tokens finds the layers that read the embeddings.
        Call it before adapters are attached. An encoder's pooler is left out: it runs once per query.
        """
        config = model.config.get_text_config()
        heads, kv_heads, head_dim = _attention(config)
        output = model.get_output_embeddings()
        modules = [m for n, m in model.named_modules() if m is not output and _is_linear(m) and "pooler" not in n]
        if not modules:
            raise BaseModelError(f"{type(model).__name__} has no linear layers to count: use a decoder built of nn.Linear")
        linears = _sizes(modules)
        in_linears = {id(m.weight) for m in modules}
        intermediate = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return cls(
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=intermediate,
            vocab=0 if output is None else output.out_features,
            gated=linears.count((config.hidden_size, intermediate)) >= 2 * config.num_hidden_layers,
            linears=linears,
            entry=_sizes(_entry_layers(model, modules)),
            other_params=sum(p.numel() for p in model.parameters() if id(p) not in in_linears),
        )

    @property
    def linear_params(self) -> int:
        """Σ d_in·d_out over `linears`."""
        return _products(self.linears)

    @property
    def params(self) -> int:
        return self.linear_params + self.other_params


def base_flops_per_token(shape: ModelShape, context: float, head_share: float = 1.0) -> float:
    """2·Σ d_in·d_out + 4·L·heads·head_dim·context + 2·hidden·vocab.

    `context` is how many positions a token attends to on average: (n + 1)/2 is what causal attention over n tokens
    needs, n what a full kernel computes. `head_share` is the share of positions whose logits are computed.
    """
    head = 2 * shape.hidden * shape.vocab * head_share
    return 2 * shape.linear_params + attention_flops_per_token(shape, context) + head


def attention_flops_per_token(shape: ModelShape, context: float) -> float:
    """L·heads·(2·head_dim·context for the scores + the same for the weighted values)."""
    return 4 * shape.layers * shape.heads * shape.head_dim * context


def adapter_flops_per_token(linears: Linears, rank: float) -> float:
    """Σ 2·r·(d_in + d_out): down to the rank axis and up again, beside every adapted linear layer."""
    return 2 * rank * _sums(linears)


def adapter_params(linears: Linears, rank: int) -> int:
    """Σ r·(d_in + d_out)."""
    return rank * _sums(linears)


def active_ranks(weights: np.ndarray, shared: np.ndarray, expert_ranks: Sequence[int], shared_rank: int) -> np.ndarray:
    """Rank slots that each route needs: those of experts with weight above 0, and the shared ones where it is on.

    *Shape:* weights (records, experts), shared (records,) → (records,).
    """
    return (np.asarray(weights) != 0) @ np.asarray(expert_ranks) + (np.asarray(shared) != 0) * shared_rank


def executed_rank(active: np.ndarray, total_rank: int, form: str = "auto") -> int:
    """Rank slots that the code multiplies for every row of a batch whose rows need `active` (records,).

    The wide form computes all of them; the gathered form pads every row to the one that needs most; `auto` decides as
    RoutedModel.route does.
    """
    from moe_router.experts.adapters import WIDE_RATIO

    most = int(np.max(active, initial=0))
    wide = form == "wide" or (form == "auto" and total_rank <= WIDE_RATIO * most)
    return total_rank if wide and most else most


def embedder_flops_per_query(shape: ModelShape, tokens: float) -> float:
    """tokens·(2·Σ d_in·d_out + 4·L·heads·head_dim·tokens): an encoder sees every token from every other, and has no head."""
    return tokens * (2 * shape.linear_params + attention_flops_per_token(shape, tokens))


def gate_flops_per_query(dimension: int, experts: int, memory: int = 0) -> float:
    """2·dimension·(experts + memory): expert logits, and similarity to the remembered training queries (abstention)."""
    return 2.0 * dimension * (experts + memory)


def amortised_flops_per_token(flops_per_query: float, tokens_per_query: float) -> float:
    """A cost paid once per query, spread over the tokens of prompt and answer."""
    return flops_per_query / tokens_per_query


def lora_training_flops_per_token(
    shape: ModelShape,
    context: float,
    rank: float,
    head_share: float = 1.0,
    adapted: Linears | None = None,
    recomputed: bool = False,
) -> float:
    """Forward, backward to the inputs of a frozen base, and three passes of its adapters.

    Base: the forward once more for the inputs' gradients, less the entry layers, whose inputs need none; attention's
    backward is ATTENTION_BACKWARD forwards; no weight gradients. Adapters on `adapted` (default: all of `linears`):
    forward, inputs' and weights' gradients, 2·r·(d_in + d_out) each, less the entry layers' 2·r·d_in. `recomputed`: with
    gradient checkpointing, the blocks' forward is done twice, the output head's once.
    """
    adapted = shape.linears if adapted is None else adapted
    forward = base_flops_per_token(shape, context, head_share)
    blocks = base_flops_per_token(shape, context, head_share=0)
    attention = attention_flops_per_token(shape, context)
    backward = forward - attention - 2 * _products(shape.entry) + ATTENTION_BACKWARD * attention
    entry = Counter(shape.entry) & Counter(adapted)
    once = adapter_flops_per_token(adapted, rank)
    adapters = 3 * once - 2 * rank * sum(d_in for d_in, _ in entry.elements())
    return forward + backward + adapters + recomputed * (blocks + once)


def full_training_flops_per_token(
    shape: ModelShape, context: float, head_share: float = 1.0, recomputed: bool = False
) -> float:
    """3 × the forward: once forward, once for the inputs' gradients (the embeddings train too), once for the weights'.

    Attention has no weights and twice its forward in the backward, the same sum. `recomputed` as for adapters.
    """
    forward = base_flops_per_token(shape, context, head_share)
    return 3 * forward + recomputed * base_flops_per_token(shape, context, head_share=0)


def kv_bytes_per_token(shape: ModelShape, bytes_per_number: float = BF16_BYTES) -> float:
    """2·L·kv_heads·head_dim numbers: a key and a value in every layer."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * bytes_per_number


def weight_bytes(shape: ModelShape, bits: float = NF4_BITS) -> float:
    """`bits` for each parameter of a linear layer (NF4 with double quantisation: 4.127), bf16 for the others."""
    return shape.linear_params * bits / 8 + shape.other_params * BF16_BYTES


def memory_bytes(weights: float, held_params: float, kv_per_token: float, context: float) -> float:
    """weights + 2·(adapter parameters held) + KV cache of one sequence of `context` tokens."""
    return weights + BF16_BYTES * held_params + kv_per_token * context


def decode_bytes_per_token(weights: float, used_params: float, kv_per_token: float, context: float) -> float:
    """Read to generate one token of one sequence: every weight, the adapters used (bf16), keys and values so far."""
    return weights + BF16_BYTES * used_params + kv_per_token * context


def _products(linears: Linears) -> int:
    return sum(d_in * d_out for d_in, d_out in linears)


def _sums(linears: Linears) -> int:
    return sum(d_in + d_out for d_in, d_out in linears)


def _attention(config: Any) -> tuple[int, int, int]:
    """Heads, KV heads and head dimension under the names that transformers configs give them."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        kv_heads = 1  # the first Falcons
    return heads, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def _is_linear(module: nn.Module) -> bool:
    """nn.Linear and bitsandbytes' 4-bit layers, whose packed weight hides its shape."""
    return hasattr(module, "in_features") and hasattr(module, "out_features") and hasattr(module, "weight")


def _sizes(modules: Iterable[nn.Module]) -> tuple[tuple[int, int], ...]:
    return tuple((m.in_features, m.out_features) for m in modules)


def _entry_layers(model: nn.Module, modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Layers whose input carries no gradient when every linear layer's output does, as it does with adapters on them."""
    import torch

    found: list[nn.Module] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if not inputs[0].requires_grad:
            found.append(module)
        return output.detach().requires_grad_().clone()  # Falcon adds to it in place, which a leaf forbids

    trainable = [p for p in model.parameters() if p.requires_grad]
    hooks = [m.register_forward_hook(note) for m in modules]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)
    return found
