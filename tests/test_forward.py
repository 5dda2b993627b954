"""The forward pass against the base with the experts merged into its weights."""

import contextlib

import pytest
import torch
from models import tiny_base

from moe_router.experts.adapters import SHARED, RankLayout, RoutedModel
from moe_router.inference.cache import CacheShape, SlotCache
from moe_router.inference.forward import EagerForward, causal
from moe_router.inference.requests import GRAIN

NAMES, SCALES = ("a", "b"), {"a": 1.0, "b": 0.5, SHARED: 2.0}
NONE, ONE, MIXED = (0, 0, 0), (GRAIN, 0, 0), (GRAIN // 4, 3 * GRAIN // 4, 1)
PROMPT = list(range(40, 60))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base = tiny_base(tmp_path_factory.mktemp("base"))
    made = RoutedModel(base, RankLayout(NAMES, (4, 2), 2), SCALES)
    generator = torch.Generator().manual_seed(3)
    for layer in made.layers.values():
        for factor in (layer.A, layer.B):
            factor.data[:-1] = torch.randn(factor[:-1].shape, generator=generator) * 0.1
    return made


@pytest.fixture
def forward(model):
    with torch.inference_mode():
        yield EagerForward(model, SlotCache(CacheShape.of(model.base), 4, 256, model.base.device))


@contextlib.contextmanager
def merged(model, mixture):
    """The base with W + Σ weight · scale · Bᵀ·A in place of every W."""
    weights = {"a": mixture[0] / GRAIN, "b": mixture[1] / GRAIN, SHARED: mixture[2]}
    kept = {path: layer.base.weight.data.clone() for path, layer in model.layers.items()}
    for name, weight in weights.items():
        for path, (a, b) in model.factors(name).items():
            model.layers[path].base.weight.data += weight * SCALES[name] * b.T @ a
    yield
    for path, weight in kept.items():
        model.layers[path].base.weight.data = weight


def reference(model, tokens, mixture):
    with merged(model, mixture):
        return model.base.model(input_ids=torch.tensor([tokens])).logits[0, -1]


@pytest.mark.parametrize("mixture", [NONE, ONE, MIXED], ids=["none", "one-hot", "mixed"])
def test_chunks_then_steps_equal_the_merged_base(model, forward, mixture):
    forward([PROMPT[:7]], [0], 2, [mixture])
    forward([PROMPT[7:19]], [7], 2, [mixture])
    found = forward([PROMPT[19:]], [19], 2, [mixture])
    assert torch.allclose(found[0], reference(model, PROMPT, mixture), atol=2e-5)


def test_rows_of_different_length_start_and_mixture_share_a_pass(model, forward):
    mixtures = [NONE, ONE, MIXED]
    forward([PROMPT[:5], PROMPT[:1], PROMPT[:3]], [0, 0, 0], 1, mixtures)
    found = forward([PROMPT[5:6], PROMPT[1:20], PROMPT[3:9]], [5, 1, 3], 1, mixtures)
    for row, (end, mixture) in enumerate(zip((6, 20, 9), mixtures, strict=True)):
        assert torch.allclose(found[row], reference(model, PROMPT[:end], mixture), atol=2e-5)


def test_the_last_place_of_the_context_can_be_read(model, forward):
    long = [2 + i % 50 for i in range(256)]
    forward([long[:200], PROMPT], [0, 0], 0, [NONE, NONE])
    found = forward([long[200:], PROMPT], [200, 20], 0, [NONE, NONE])
    assert torch.allclose(found[0], reference(model, long, NONE), atol=2e-5)


def test_a_token_looks_at_itself_and_back():
    mask = causal(torch.tensor([[0, 1], [3, 4]]), 5, torch.float32)
    assert mask.shape == (2, 1, 2, 5)
    assert (mask == 0).sum(-1).flatten().tolist() == [1, 2, 4, 5]
