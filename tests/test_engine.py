import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_base

from moe_router.config import GenerationConfig
from moe_router.experts.adapters import SHARED, RankLayout, RoutedModel
from moe_router.inference.engine import Engine, Request, sample

PROMPTS = [[11, 12, 13], [40, 41, 42, 43, 44, 45, 46], [99]]
SETTINGS = GenerationConfig(max_new_tokens=12)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    base = tiny_base(tmp_path_factory.mktemp("base"))
    model = RoutedModel(base, RankLayout(("a", "b"), (4, 4), 2), {"a": 1.0, "b": 1.0, SHARED: 1.0})
    generator = torch.Generator().manual_seed(3)
    for layer in model.layers.values():
        for factor in (layer.A, layer.B):
            factor.data[:-1] = torch.randn(factor[:-1].shape, generator=generator) * 0.3
    return Engine(model)


def requests(**changes):
    weights = [[1, 0], [0, 1], [0.5, 0.5]]
    made = [Request(p, np.array(w, np.float32), settings=SETTINGS) for p, w in zip(PROMPTS, weights, strict=True)]
    return [replace(request, **changes) for request in made]


def texts(engine, batch):
    found = ["" for _ in batch]
    finish = ["" for _ in batch]
    for piece in engine.generate(batch):
        found[piece.row] += piece.text
        finish[piece.row] = piece.finish
    return found, finish


def test_batch_equals_single_runs(engine):
    together, _ = texts(engine, requests())
    alone = [texts(engine, [request])[0][0] for request in requests()]
    assert together == alone
    assert len(set(together)) == 3


def test_expert_changes_the_answer(engine):
    first, _ = texts(engine, [replace(requests()[0], weights=np.array([1, 0], np.float32))])
    second, _ = texts(engine, [replace(requests()[0], weights=np.array([0, 1], np.float32))])
    assert first != second


def test_sampling_repeats_with_the_seed_and_differs_without(engine):
    hot = replace(SETTINGS, temperature=1.0, seed=5)
    once, again = (texts(engine, requests(settings=hot))[0] for _ in range(2))
    other = texts(engine, requests(settings=replace(hot, seed=6)))[0]
    assert once == again != other


def test_length_and_stop_end_a_row(engine):
    found, finish = texts(engine, requests())
    assert set(finish) <= {"length", "stop"}
    word = found[0][len(found[0]) // 2 :][:3]
    stopped, why = texts(engine, requests(stop=(word,))[:1])
    assert why == ["stop"]
    assert stopped[0] == found[0][: found[0].index(word)].rstrip()


def test_a_row_that_is_not_finite_fails_alone(engine):
    clean, _ = texts(engine, requests())
    layer = next(iter(engine.model.layers.values()))
    kept = layer.B.data.clone()
    layer.B.data[engine.model.layout.slots["b"]] = torch.nan
    try:
        found, finish = texts(engine, requests())
    finally:
        layer.B.data.copy_(kept)
    assert finish[1:] == ["error", "error"]
    assert found[0] == clean[0]


def test_a_prompt_longer_than_the_context_keeps_its_end(engine):
    long = Request(list(range(2, 202)) * 3, np.array([1, 0], np.float32), settings=SETTINGS)
    _, finish = texts(engine, [long])
    assert finish[0] in {"length", "stop"}


def test_threads_do_not_mix_routes(engine):
    batch = requests()
    expected = [texts(engine, [request])[0][0] for request in batch]
    found = {}

    def work(i):
        found[i] = texts(engine, [batch[i % 3]])[0][0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(6)] == expected * 2


def test_nucleus_keeps_the_likeliest_tokens():
    logits = torch.tensor([0.0, 5.0, 4.0, -3.0])
    random = torch.Generator().manual_seed(0)
    settings = GenerationConfig(temperature=1.0, top_p=0.9)
    assert {sample(logits, settings, random) for _ in range(50)} == {1, 2}
    assert sample(logits, GenerationConfig(), random) == 1
