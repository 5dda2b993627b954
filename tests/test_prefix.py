import pytest
import torch

from moe_router.inference.cache import CacheShape, SlotCache
from moe_router.inference.prefix import BLOCK, PrefixCache

SHAPE = CacheShape(layers=2, heads=1, head_size=4, dtype=torch.float32, context=200)
TOKENS = list(range(3 * BLOCK))


@pytest.fixture
def cache():
    made = SlotCache(SHAPE, 2, 200, torch.device("cpu"))
    made.kv.normal_()
    return made


def blocks(count):
    return count * BLOCK * SHAPE.bytes_per_token


def test_a_known_start_is_put_back_as_it_was(cache):
    prefix = PrefixCache(cache, blocks(10))
    prefix.save("a", TOKENS, 0)
    known = prefix.load("a", [*TOKENS[: 2 * BLOCK], 999, *TOKENS[2 * BLOCK :]], 1)
    assert known == 2 * BLOCK
    assert cache.kv[:, :, 1, :, :known].equal(cache.kv[:, :, 0, :, :known])
    assert not cache.kv[:, :, 1, :, known].equal(cache.kv[:, :, 0, :, known])


def test_another_owner_or_start_finds_nothing(cache):
    prefix = PrefixCache(cache, blocks(10))
    prefix.save("a", TOKENS, 0)
    assert prefix.load("b", TOKENS, 1) == 0
    assert prefix.load("a", [7, *TOKENS[1:]], 1) == 0


def test_the_last_token_is_never_taken_from_the_cache(cache):
    prefix = PrefixCache(cache, blocks(10))
    prefix.save("a", TOKENS, 0)
    assert prefix.load("a", TOKENS, 1) == 2 * BLOCK


def test_the_least_recently_used_ends_go_first(cache):
    prefix = PrefixCache(cache, blocks(4))
    prefix.save("a", TOKENS, 0)
    prefix.save("b", TOKENS[: 2 * BLOCK], 0)
    assert len(prefix) == 4
    assert prefix.load("b", [*TOKENS[: 2 * BLOCK], 1], 1) == 2 * BLOCK
    assert prefix.load("a", [*TOKENS, 1], 1) == 2 * BLOCK


def test_without_memory_nothing_is_kept(cache):
    prefix = PrefixCache(cache, 0)
    prefix.save("a", TOKENS, 0)
    assert len(prefix) == prefix.load("a", TOKENS, 1) == 0
