"""The memory formulas against published sizes and a model that transformers builds."""

from dataclasses import replace

import pytest

from moe_router.memory import LLAMA, NF4_BITS, Load, Shape, inference, training


@pytest.mark.parametrize(("index", "published"), [(0, 6.738e9), (1, 13.016e9), (2, 32.529e9), (3, 65.286e9)])
def test_parameters_are_those_of_llama(index, published):
    assert LLAMA[index].params == pytest.approx(published, rel=1e-4)


@pytest.fixture(scope="module")
def built():
    """Shape and the model that transformers makes of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = Shape("tiny", width=64, layers=3, mlp_width=160, vocabulary=500)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    return shape, LlamaForCausalLM(config)


def test_counts_agree_with_a_built_model(built):
    shape, model = built
    linears = [m for n, m in model.named_modules() if type(m).__name__ == "Linear" and n != "lm_head"]
    assert shape.params == model.num_parameters()
    assert shape.linear_params == sum(m.weight.numel() for m in linears)
    assert shape.adapter_params_per_rank == sum(m.in_features + m.out_features for m in linears)


def test_the_cache_agrees_with_a_built_model(built):
    import torch

    shape, model = built
    cache = model(torch.zeros(1, 5, dtype=torch.long)).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert shape.kv_bytes_per_token * 5 == numbers * 2


def test_nf4_bits_agree_with_bitsandbytes():
    import torch
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(512, 512)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    size = packed.numel() + state.absmax.numel() + 4 * state.state2.absmax.numel()  # codebooks are shared constants
    assert size * 8 / weight.numel() == pytest.approx(NF4_BITS, rel=1e-6)


def test_demands_grow_with_what_is_asked():
    small, wide, long = Load(8, 64), Load(80, 64), Load(8, 640, context=4096)
    shape = LLAMA[0]
    assert training(shape, wide).adapters == 10 * training(shape, small).adapters
    assert 5 * training(shape, small).working < training(shape, long).working < 10 * training(shape, small).working
    assert inference(shape, long).working == 2 * inference(shape, small).working
    assert training(shape, small).adapters == 6 * inference(shape, small).adapters
    parts = training(shape, small)
    assert parts.total == parts.weights + parts.adapters + parts.working + parts.runtime


@pytest.mark.parametrize("saving", [{"checkpointed": True}, {"pass_tokens": 512}, {"compute_bytes": 2}, {"target_share": 0.1}])
def test_each_way_of_saving_memory_saves_some(saving):
    load = Load(72, 4096, active_rank=16, compute_bytes=4, target_share=1.0)
    assert training(LLAMA[0], replace(load, **saving)).working < training(LLAMA[0], load).working


def test_eight_bit_moments_take_a_quarter():
    load = Load(72, 4096)
    plain, small = (training(LLAMA[0], replace(load, optimizer=name)).adapters for name in ("adamw", "paged_adamw_8bit"))
    assert small / plain == (4 + 2) / (4 + 8)
