"""Attention in fp32 while a bfloat16 model learns on a CPU: the same numbers, less rounded."""

import pytest
import torch
import torch.nn.functional as F
from models import tiny_base

from moe_router.experts.cpu_attention import attention_for
from moe_router.experts.encode import IGNORE, Example, collate
from moe_router.experts.nats import token_nats
from moe_router.experts.scoring import target_logits

CPU = torch.device("cpu")


def attention(dtype, inside, **settings):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 40, 16, dtype=dtype, requires_grad=True) for heads in (4, 2, 2))
    with inside:
        out = F.scaled_dot_product_attention(query, key, value, enable_gqa=True, **settings)
    out.float().pow(2).sum().backward()
    return out, torch.cat([part.grad.float().flatten() for part in (query, key, value)])


@pytest.mark.parametrize("mask", ["causal", "bool", "float"])
def test_nearer_to_fp32_than_bfloat16_is(mask):
    lower = torch.ones(40, 40, dtype=torch.bool).tril()
    masks = {"causal": lambda _: {"is_causal": True}, "bool": lambda _: {"attn_mask": lower}}
    masks["float"] = lambda dtype: {"attn_mask": torch.zeros(40, 40, dtype=dtype).masked_fill(~lower, -1e9)}
    _, exact = attention(torch.float32, attention_for(CPU, torch.float32), **masks[mask](torch.float32))
    plain, rounded = attention(torch.bfloat16, attention_for(CPU, torch.float32), **masks[mask](torch.bfloat16))
    ours, found = attention(torch.bfloat16, attention_for(CPU, torch.bfloat16), **masks[mask](torch.bfloat16))
    assert ours.dtype == plain.dtype == torch.bfloat16
    assert not torch.equal(found, rounded)  # it was another computation
    assert float((found - exact).norm() / exact.norm()) <= float((rounded - exact).norm() / exact.norm()) < 0.02


def test_without_gradients_nothing_changes():
    query = torch.randn(1, 2, 8, 16, dtype=torch.bfloat16)
    with attention_for(CPU, torch.bfloat16):
        found = F.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert torch.equal(found, F.scaled_dot_product_attention(query, query, query, is_causal=True))


def test_a_packed_rows_records_stay_apart(tmp_path):
    """The mask that keeps them apart reaches the fp32 attention."""
    base = tiny_base(tmp_path, "bfloat16")
    records = [Example(tuple(range(start, start + 12)), 4) for start in (40, 80)]

    def nats(rows):
        batch = collate(rows, base.eos, base.device)
        embeddings = base.model.get_input_embeddings()
        with attention_for(CPU, base.dtype):
            handle = embeddings.register_forward_hook(lambda *a: a[2].requires_grad_())
            try:
                return token_nats(target_logits(base.model, batch), batch.labels[batch.labels != IGNORE])
            finally:
                handle.remove()

    packed, apart = nats([records]), nats([[record] for record in records])
    torch.testing.assert_close(packed, apart, rtol=0.02, atol=0.02)
