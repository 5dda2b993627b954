"""How much memory a base needs in NF4, for training experts and for answering: the arithmetic behind `doctor`."""

from __future__ import annotations

from dataclasses import dataclass

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits per parameter with double quantisation: the 4-bit code, an 8-bit constant for every 64 of them, and a 32-bit one
for every 256 of those (Dettmers et al. 2023)."""
BF16_BYTES = 2
TRAINING_BYTES = 16
"""Per adapter parameter while training: fp32 weight, gradient, and AdamW's two moments."""
CHECKPOINTED = False
"""Whether the trainer recomputes activations (gradient checkpointing); it keeps every layer's."""
RUNTIME_BYTES = 1 << 30
"""Set aside for the interpreter, the libraries and the allocator's slack."""


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama-type decoder with untied embeddings and as many KV heads as heads."""

    name: str
    width: int
    layers: int
    mlp_width: int
    vocabulary: int = 32_000

    @property
    def linear_params(self) -> int:
        """L·(4·d² + 3·d·f): attention's four projections and the gated MLP's three, which NF4 stores."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.mlp_width)

    @property
    def other_params(self) -> int:
        """2·V·d + (2·L + 1)·d: embeddings, output head and norms, which stay in bf16."""
        return 2 * self.vocabulary * self.width + (2 * self.layers + 1) * self.width

    @property
    def params(self) -> int:
        return self.linear_params + self.other_params

    @property
    def weight_bytes(self) -> int:
        """4.127 bits for each parameter of a linear layer, 16 for the others."""
        return round(self.linear_params * NF4_BITS / 8) + self.other_params * BF16_BYTES

    @property
    def kv_bytes_per_token(self) -> int:
        """2·L·d·2 bytes: a key and a value in bf16 for every layer."""
        return 2 * self.layers * self.width * BF16_BYTES

    @property
    def adapter_params_per_rank(self) -> int:
        """L·(4·2d + 3·(d + f)): d_in + d_out of every linear layer."""
        return self.layers * (4 * 2 * self.width + 3 * (self.width + self.mlp_width))

    def activation_bytes(self, tokens: int, checkpointed: bool) -> int:
        """What a backward pass over `tokens` needs kept, in bf16, and the logits.

        A layer keeps about 8·d + 4·f numbers a token (inputs of norms and projections, attention's q, k, v and output,
        four MLP intermediates; no attention matrix). With gradient checkpointing only one layer does, and of each other
        its input d is kept. Logits: V numbers a token in bf16, and fp32 copy and gradient.
        """
        layer = 8 * self.width + 4 * self.mlp_width
        kept = layer + self.layers * self.width if checkpointed else self.layers * layer
        return tokens * (kept * BF16_BYTES + self.vocabulary * (BF16_BYTES + 4 + 4))


LLAMA = (
    Shape("7B", 4096, 32, 11_008),
    Shape("13B", 5120, 40, 13_824),
    Shape("33B", 6656, 60, 17_920),
    Shape("65B", 8192, 80, 22_016),
)
"""The four sizes of LLaMA (Touvron et al. 2023), after which other bases of a size can be judged."""


@dataclass(frozen=True)
class Load:
    """What is asked of the base: how wide the library is, and how much text is held at once."""

    total_rank: int
    """R: rank slots of all experts together, the shared one included."""
    step_tokens: int
    """Tokens of one training step."""
    context: int = 2048
    """Tokens held in the KV cache while answering."""


@dataclass(frozen=True)
class Demand:
    """Bytes needed at once, part by part."""

    weights: int
    adapters: int
    working: int
    """Activations while training, KV cache while answering."""
    runtime: int = RUNTIME_BYTES

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.working + self.runtime


def training(shape: Shape, load: Load) -> Demand:
    """Memory to train all experts in one pass."""
    adapters = shape.adapter_params_per_rank * load.total_rank * TRAINING_BYTES
    return Demand(shape.weight_bytes, adapters, shape.activation_bytes(load.step_tokens, CHECKPOINTED))


def inference(shape: Shape, load: Load) -> Demand:
    """Memory to answer one query at a time, all experts loaded in bf16."""
    adapters = shape.adapter_params_per_rank * load.total_rank * BF16_BYTES
    return Demand(shape.weight_bytes, adapters, shape.kv_bytes_per_token * load.context)
