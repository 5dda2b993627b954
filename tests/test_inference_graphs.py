"""Captured decode steps against the eager forward; on the CPU the capture is the step itself."""

import pytest
import torch
from models import tiny_base

from moe_router.experts.adapters import SHARED, RankLayout, RoutedModel
from moe_router.inference.cache import CacheShape, SlotCache
from moe_router.inference.forward import EagerForward
from moe_router.inference.graphs import CudaCapture, GraphForward, power
from moe_router.inference.requests import GRAIN

NONE, ONE, MIXED = (0, 0, 0), (GRAIN, 0, 0), (GRAIN // 4, 3 * GRAIN // 4, 1)
PROMPTS = [list(range(40, 60)), [7, 8, 9], list(range(100, 230))]


def make(base, form="auto", capture=lambda step: step):
    model = RoutedModel(base, RankLayout(("a", "b"), (4, 2), 2), {"a": 1.0, "b": 0.5, SHARED: 2.0})
    generator = torch.Generator().manual_seed(3)
    for layer in model.layers.values():
        for factor in (layer.A, layer.B):
            factor.data[:-1] = (torch.randn(factor[:-1].shape, generator=generator) * 0.1).to(factor)
    with torch.inference_mode():
        cache = SlotCache(CacheShape.of(base), 6, 256, base.device)
        return GraphForward(EagerForward(model, cache, form), capture)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("base")


@pytest.fixture(params=["wide", "gathered"])
def graphs(request, folder):
    made = make(tiny_base(folder), request.param)
    with torch.inference_mode():
        yield made
    made.eager.model.detach()


def prefill(graphs, mixtures):
    graphs(PROMPTS, [0] * 3, 0, mixtures)
    return [len(prompt) for prompt in PROMPTS]


def compare(graphs, mixtures, starts, atol=1e-4):
    """The step by replay and by the eager forward, which writes the same keys again."""
    tokens = [[11], [12], [13]]
    found = graphs(tokens, starts, 0, mixtures)
    torch.testing.assert_close(found, graphs.eager(tokens, starts, 0, mixtures), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("mixtures", [[NONE] * 3, [ONE, MIXED, NONE], [MIXED] * 3])
def test_a_replayed_step_equals_the_eager_one(graphs, mixtures):
    starts = prefill(graphs, mixtures)
    compare(graphs, mixtures, starts)
    assert len(graphs) == 1


def test_one_graph_serves_other_routes_tokens_and_row_counts(graphs):
    starts = prefill(graphs, [MIXED] * 3)
    compare(graphs, [MIXED] * 3, starts)
    for mixtures in ([ONE, MIXED, ONE], [MIXED, NONE, ONE]):
        compare(graphs, mixtures, starts)
    assert len(graphs) == 1
    graphs([[5]] * 4, [0, 0, 0, 130], 0, [MIXED] * 4)
    assert len(graphs) == 1
    graphs([[5]], [0], 0, [MIXED])
    assert len(graphs) == 2


def test_idle_rows_of_a_bucket_touch_no_slot(graphs):
    starts = prefill(graphs, [MIXED] * 3)
    kept = graphs.eager.cache.kv[:, :, 3:, :, :-1].clone()
    compare(graphs, [MIXED] * 3, starts)
    assert torch.equal(graphs.eager.cache.kv[:, :, 3:, :, :-1], kept)


def test_a_failed_capture_falls_back_to_eager_and_says_why(folder):
    def refuse(step):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = make(tiny_base(folder), capture=refuse)
    with torch.inference_mode():
        starts = prefill(graphs, [MIXED] * 3)
        compare(graphs, [MIXED] * 3, starts, atol=0)
    assert graphs.failure == "operation not permitted when stream is capturing"
    assert len(graphs) == 0


def test_sizes_of_buckets():
    assert [power(n) for n in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]
    assert [power(n, 128) for n in (1, 128, 129)] == [128, 128, 256]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_on_cuda_the_captured_step_equals_the_eager_one(folder, quantization):
    graphs = make(tiny_base(folder, "bfloat16", quantization), capture=CudaCapture())
    with torch.inference_mode():
        for mixtures in ([ONE, MIXED, NONE], [NONE] * 3, [MIXED] * 3):
            compare(graphs, mixtures, prefill(graphs, mixtures), atol=0.05)
    assert not graphs.failure
