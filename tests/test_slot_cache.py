from dataclasses import replace

import pytest
import torch
from models import tiny_base
from transformers import MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from moe_router.errors import BaseModelError, ConfigError
from moe_router.inference.cache import CacheShape, SlotCache


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def cache(base):
    return SlotCache(CacheShape.of(base), slots=3, tokens=20, device=base.device)


def small(kind, config):
    return kind(config(vocab_size=64, hidden_size=32, num_hidden_layers=2)).eval()


def test_shape_is_what_the_base_keeps(base):
    shape = CacheShape.of(base)
    assert (shape.layers, shape.heads, shape.head_size, shape.context) == (2, 2, 16, 256)
    assert shape.bytes_per_token == 2 * 2 * 2 * 16 * 4


def test_a_sliding_window_limits_the_context(base):
    def config(**sizes):
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
        return MistralConfig(**sizes, **heads, sliding_window=48, max_position_embeddings=256)

    assert CacheShape.of(replace(base, model=small(MistralForCausalLM, config))).context == 48


def test_a_base_without_keys_and_values_is_refused(base):
    with pytest.raises(BaseModelError, match="plain keys and values"):
        CacheShape.of(replace(base, model=small(MambaForCausalLM, MambaConfig)))


def test_too_much_memory_names_the_estimate_and_the_setting(base):
    with pytest.raises(ConfigError, match=r"1000000 slots of 1,000,000 tokens needs .* GiB on cpu: lower"):
        SlotCache(CacheShape.of(base), 1_000_000, 1_000_000, base.device)


def test_rows_write_and_read_their_own_slots(cache):
    new = torch.arange(2 * 2 * 3 * 16, dtype=torch.float32).reshape(2, 2, 3, 16)
    cache.place(1, torch.tensor([[0, 1, 2], [5, 6, 20]]), width=8)
    keys, values = cache.layers[1].update(new, -new)
    assert keys.shape == (2, 2, 8, 16)
    assert keys[0, :, :3].equal(new[0])
    assert values[1, :, 5:7].equal(-new[1, :, :2])
    assert cache.kv[0].abs().sum() == 0
    assert cache.kv[:, :, 0].abs().sum() == 0
    assert keys.data_ptr() == cache.kv[1, 0, 1].data_ptr()


def test_swap_exchanges_slots_and_clear_forgets(cache):
    cache.kv.normal_()
    before = cache.kv.clone()
    cache.swap(0, 2, 5)
    assert cache.kv[:, :, 0, :, :5].equal(before[:, :, 2, :, :5])
    assert cache.kv[:, :, 2, :, :5].equal(before[:, :, 0, :, :5])
    assert cache.kv[:, :, 0, :, 5:].equal(before[:, :, 0, :, 5:])
    assert cache.kv[:, :, 1].equal(before[:, :, 1])
    cache.kv[:, :, 1] = torch.nan
    cache.clear(1)
    assert cache.kv.isfinite().all()
