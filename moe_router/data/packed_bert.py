"""The forward pass of BERT-like sentence embedders on the CPU, in half the processor time of the stock one.

Of a short query most of the time goes into reading 42 MB of weights and into calling a hundred small operations. Here the
weights lie in oneDNN's blocked order, queries, keys and values are one product, GELU is part of another, and a single query
needs no mask. The vectors are those of sentence-transformers but for rounding (tested: within 1e-5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ROWS = 20
"""Tokens of a usual query: the order of the weights is the fastest for as many."""
BATCH_TOKENS = 1024
"""Tokens of a batch, padding included."""


@dataclass(frozen=True)
class Packed:
    """A linear layer with its weight in oneDNN's order."""

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, *layers: torch.nn.Linear) -> Packed:
        """Several layers of one input become one layer, their outputs side by side."""
        weight = torch.cat([layer.weight for layer in layers])
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), torch.cat([layer.bias for layer in layers]))

    def __call__(self, x: torch.Tensor, then: str = "none") -> torch.Tensor:
        """*Shape:* (tokens, inputs) → (tokens, outputs). `then` may be `gelu`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], "none" if then == "gelu" else "")


@dataclass(frozen=True)
class _Layer:
    heads: int
    read: Packed  # queries, keys and values
    write: Packed
    attended: torch.nn.LayerNorm
    up: Packed
    down: Packed
    out: torch.nn.LayerNorm

    def __call__(self, x: torch.Tensor, rows: int, mask: torch.Tensor | None) -> torch.Tensor:
        """*Shape:* x (rows · seq, width), mask (rows, 1, 1, seq) bool → as x."""
        parts = self.read(x).view(rows, -1, 3, self.heads, x.shape[1] // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (rows, heads, seq, width of a head) each
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.attended(x + self.write(seen.transpose(1, 2).reshape(x.shape)))
        return self.out(x + self.down(self.up(x, "gelu")))


class PackedBert:
    """A sentence embedder's BERT and its mean over tokens, for a model that `fits`."""

    def __init__(self, model: SentenceTransformer) -> None:
        bert = model[0].auto_model
        self._tokenizer, self._embeddings = model.tokenizer, bert.embeddings
        self._layers = [_packed(layer, bert.config.num_attention_heads) for layer in bert.encoder.layer]
        self._types = torch.zeros(1, 1, dtype=torch.int64)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """*Shape:* (texts, dimension) float32, each of unit length."""
        tokens = self._tokenizer(list(texts), truncation=True)["input_ids"]
        found = np.empty((len(texts), self._embeddings.word_embeddings.embedding_dim), dtype=np.float32)
        for chosen in _batches([len(each) for each in tokens]):
            found[chosen] = self._vectors([tokens[i] for i in chosen]).numpy()
        return found

    def _vectors(self, tokens: Sequence[list[int]]) -> torch.Tensor:
        """*Shape:* → (rows, dimension)."""
        lengths = torch.tensor([len(each) for each in tokens])
        seq = int(lengths.max())
        padded = torch.tensor([each + [0] * (seq - len(each)) for each in tokens])
        real = torch.arange(seq) < lengths[:, None]  # (rows, seq)
        mask = None if real.all() else real[:, None, None]
        x = self._embeddings(input_ids=padded, token_type_ids=self._types.expand(padded.shape)).flatten(0, 1)
        for layer in self._layers:
            x = layer(x, len(tokens), mask)
        sums = (x.view(len(tokens), seq, -1) * real[..., None]).sum(1)
        return F.normalize(sums / lengths[:, None])


PARTS = ("Transformer", "Pooling", "Normalize")
"""Modules of a model that fits, by the names of their classes, which every version of sentence-transformers keeps."""


def fits(model: SentenceTransformer) -> bool:
    """Whether a model is a plain BERT on the CPU in fp32, its vectors means over tokens without prompt or projection."""
    if tuple(type(part).__name__ for part in model) not in (PARTS, PARTS[:2]):
        return False
    config, bert = model[0].auto_model.config, model[0].auto_model
    plain = config.model_type == "bert" and config.hidden_act == "gelu" and not config.is_decoder
    absolute = getattr(config, "position_embedding_type", None) in (None, "absolute")
    stored = bert.dtype == torch.float32 and model.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return plain and absolute and stored and model[1].pooling_mode == "mean" and not model.default_prompt_name


def _packed(layer: Any, heads: int) -> _Layer:
    attention = layer.attention
    return _Layer(
        heads=heads,
        read=Packed.of(attention.self.query, attention.self.key, attention.self.value),
        write=Packed.of(attention.output.dense),
        attended=attention.output.LayerNorm,
        up=Packed.of(layer.intermediate.dense),
        down=Packed.of(layer.output.dense),
        out=layer.output.LayerNorm,
    )


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Texts of like length together, shortest first, up to BATCH_TOKENS."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[i] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
