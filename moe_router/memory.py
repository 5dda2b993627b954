"""How much memory a base needs in NF4, for training experts and for answering: the arithmetic behind `doctor`."""

from __future__ import annotations

from dataclasses import dataclass

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits per parameter with double quantisation: the 4-bit code, an 8-bit constant for every 64 of them, and a 32-bit one
for every 256 of those (Dettmers et al. 2023)."""
BF16_BYTES = 2
MASTER_BYTES = 4
"""Per adapter parameter while training: its weight in fp32; as much again for its gradient."""
MOMENT_BYTES = {"adamw": 8, "paged_adamw_32bit": 8, "paged_adamw_8bit": 2}
"""Per adapter parameter: AdamW's two moments."""
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

    def layer_bytes_per_token(self, size: int = BF16_BYTES) -> int:
        """8·d + size·(6·d + 4·f): what one layer keeps of a token for its backward pass, in numbers of `size` bytes.

        Two norms' inputs in fp32, 4·d each; the inputs of attention's and of the MLP's adapters, q, k, v and the attention's
        output, d each; the MLP's gate, its activation, the other branch and their product, f each. No attention matrix.
        """
        return 8 * self.width + size * (6 * self.width + 4 * self.mlp_width)

    def backward_bytes_per_token(self, size: int = BF16_BYTES) -> int:
        """size·3·f: gradients that the MLP's backward pass holds at once."""
        return size * 3 * self.mlp_width

    def dequantised_bytes(self, size: int = BF16_BYTES) -> int:
        """size·d·f: the largest layer in the compute type, as bitsandbytes unpacks it for a product."""
        return size * self.width * self.mlp_width


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
    pass_tokens: int = 0
    """Tokens that pass the base at once; 0: the whole step."""
    row_tokens: int = 512
    """Tokens of one row."""
    active_rank: int = 0
    """Rank slots that one row uses; 0: all of them."""
    checkpointed: bool = False
    """Gradient checkpointing."""
    optimizer: str = "adamw"
    compute_bytes: int = BF16_BYTES
    """Of a number in the base's compute type."""
    target_share: float = 0.5
    """Share of the tokens that are response, and so have logits."""

    @property
    def at_once(self) -> int:
        """Tokens that pass the base at once."""
        return min(self.step_tokens, self.pass_tokens or self.step_tokens)


@dataclass(frozen=True)
class Demand:
    """Bytes needed at once, part by part."""

    weights: int
    adapters: int
    working: int
    """Activations, logits and gradients while training, KV cache while answering."""
    runtime: int = RUNTIME_BYTES

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.working + self.runtime


def training(shape: Shape, load: Load) -> Demand:
    """Peak memory of training all experts in one pass, from the second step on.

    Standing: NF4 weights, adapters in fp32, moments. Coming and going: what the layers keep, the logits and their gradient,
    and the adapters' gradients, which grow while the layers' share shrinks. The peak lies at one end of the backward pass:
    at its beginning (all kept, and gradients already where a step has several passes) or at its end (all gradients, one
    layer).
    """
    size, now = load.compute_bytes, load.at_once
    params = shape.adapter_params_per_rank * load.total_rank
    gradients = params * MASTER_BYTES
    factors = shape.adapter_params_per_rank * size * (load.active_rank or load.total_rank) // shape.layers
    rows = -(-now // load.row_tokens)
    layer = now * (shape.layer_bytes_per_token(size) + load.row_tokens * size) + rows * factors
    back = now * shape.backward_bytes_per_token(size) + shape.dequantised_bytes(size)
    logits = round(now * load.target_share) * shape.vocabulary * 2 * size
    inputs = now * shape.width * size
    kept = shape.layers * (inputs if load.checkpointed else layer)
    one = layer + back if load.checkpointed else back
    earlier = gradients if now < load.step_tokens else 0
    working = max(earlier + kept + max(logits, one), gradients + one + (inputs if load.checkpointed else layer))
    other = shape.other_params * (size - BF16_BYTES)
    return Demand(shape.weight_bytes + other, params * (MASTER_BYTES + MOMENT_BYTES[load.optimizer]), working)


def inference(shape: Shape, load: Load) -> Demand:
    """Memory to answer one query at a time, all experts loaded in bf16."""
    adapters = shape.adapter_params_per_rank * load.total_rank * BF16_BYTES
    return Demand(shape.weight_bytes, adapters, shape.kv_bytes_per_token * load.context)
