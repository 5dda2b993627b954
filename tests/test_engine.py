import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_base

from moe_router.config import BaseConfig, GenerationConfig
from moe_router.errors import ConfigError, InputError
from moe_router.experts.adapters import SHARED, RankLayout, RoutedModel
from moe_router.experts.base import load_base
from moe_router.inference.engine import Engine, EngineConfig, Request

PROMPTS = [[11, 12, 13], [40, 41, 42, 43, 44, 45, 46], [99]]
WEIGHTS = [[1, 0], [0, 1], [0.5, 0.5]]
SETTINGS = GenerationConfig(max_new_tokens=12)
LONG = [2 + i % 300 for i in range(200)]


def routed(base, spread):
    made = RoutedModel(base, RankLayout(("a", "b"), (4, 4), 2), {"a": 1.0, "b": 1.0, SHARED: 1.0})
    generator = torch.Generator().manual_seed(3)
    for layer in made.layers.values():
        for factor in (layer.A, layer.B):
            factor.data[:-1] = torch.randn(factor[:-1].shape, generator=generator) * spread
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return routed(tiny_base(tmp_path_factory.mktemp("base")), 0.3)


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model, EngineConfig(slots=4, prefill_tokens=8))


def request(row=0, **changes):
    made = Request(PROMPTS[row], np.array(WEIGHTS[row], np.float32), settings=SETTINGS)
    return replace(made, **changes)


def requests(**changes):
    return [request(row, **changes) for row in range(3)]


def texts(engine, batch):
    found = ["" for _ in batch]
    finish = ["" for _ in batch]
    for piece in engine.start(batch):
        found[piece.row] += piece.text
        finish[piece.row] = piece.finish
    return found, finish


def alone(engine, batch):
    return [texts(engine, [request])[0][0] for request in batch]


def idle(engine):
    engine.wait()
    return engine.free == engine.cache.slots


def test_batch_equals_single_runs(engine):
    together, _ = texts(engine, requests())
    assert together == alone(engine, requests())
    assert len(set(together)) == 3


def test_more_requests_than_slots_wait_their_turn(engine):
    batch = [request(i % 3, tokens=PROMPTS[i % 3] + [7] * i) for i in range(11)]
    assert texts(engine, batch)[0] == alone(engine, batch)
    assert engine.stats.most_rows <= 4
    assert idle(engine)


def test_expert_changes_the_answer(engine):
    first, second = (request(weights=np.array(w, np.float32)) for w in ([1, 0], [0, 1]))
    assert len(set(alone(engine, [first, second]))) == 2


def test_sampling_repeats_with_the_seed_in_any_batch_and_differs_without(engine):
    hot = replace(SETTINGS, temperature=1.0, top_p=0.95, seed=5)
    once = texts(engine, requests(settings=hot))[0]
    mixed = [*requests(), *requests(settings=hot)]
    assert texts(engine, mixed)[0][3:] == once == alone(engine, requests(settings=hot))
    assert texts(engine, requests(settings=replace(hot, seed=-6)))[0] != once


def test_length_and_stop_end_a_row(engine):
    found, finish = texts(engine, requests())
    assert set(finish) <= {"length", "stop"}
    word = found[0][len(found[0]) // 2 :][:3]
    stopped, why = texts(engine, [request(stop=(word,))])
    assert why == ["stop"]
    assert stopped[0] == found[0][: found[0].index(word)].rstrip()


def test_a_row_that_is_not_finite_fails_alone_and_leaves_a_clean_slot(engine):
    clean, _ = texts(engine, requests())
    layer = next(iter(engine.model.layers.values()))
    kept = layer.B.data.clone()
    layer.B.data[engine.model.layout.slots["b"]] = torch.nan
    engine.refresh()
    try:
        found, finish = texts(engine, [request(1, tokens=LONG), *requests()])
        assert idle(engine)
    finally:
        layer.B.data.copy_(kept)
        engine.refresh()
    assert [finish[0], *finish[2:]] == ["error"] * 3
    assert found[1] == clean[0]
    assert idle(engine)
    assert engine.cache.kv.isfinite().all()
    assert texts(engine, requests())[0] == clean


def test_a_prompt_without_room_for_an_answer_is_refused_and_the_engine_goes_on(engine):
    with pytest.raises(InputError, match=r"the prompt has 256 tokens and .* 256: shorten it"):
        engine.start([request(), request(tokens=[5] * 256)])
    assert texts(engine, [request(tokens=[5] * 255)])[1] == ["length"]
    with pytest.raises(InputError, match="each of the 2 experts"):
        engine.start([request(weights=np.array([1.0]))])
    assert idle(engine)


def test_a_long_prompt_does_not_hold_up_the_others(engine):
    running = engine.start([request(settings=replace(SETTINGS, max_new_tokens=200))])
    next(running)
    order = [piece.row for piece in engine.start([request(tokens=LONG), request(1)]) if piece.finish]
    running.cancel()
    assert order == [1, 0]


def test_threads_do_not_mix_routes(engine):
    expected = alone(engine, requests())
    found = {}

    def work(i):
        found[i] = texts(engine, [request(i % 3)])[0][0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(6)] == expected * 2


def test_cancelling_frees_the_slot_and_says_so(engine):
    endless = [request(settings=replace(SETTINGS, max_new_tokens=240)) for _ in range(6)]
    generation = engine.start(endless)
    next(generation)
    generation.cancel()
    assert {piece.finish for piece in generation if piece.finish} == {"cancelled"}
    assert idle(engine)
    engine.start(endless)
    assert idle(engine)


def test_a_known_prompt_is_not_read_again_and_answers_the_same(model):
    engine = Engine(model)
    first = texts(engine, [request(tokens=LONG)])
    read = engine.stats.tokens
    assert texts(engine, [request(tokens=LONG)]) == first
    assert engine.stats.known_tokens == 192
    assert engine.stats.tokens - read < 30
    texts(engine, [request(1, tokens=LONG), request(tokens=LONG, shared=False)])
    assert engine.stats.known_tokens == 192


def test_a_conversation_keeps_its_keys_whatever_mixture_made_them(model):
    engine = Engine(model)
    texts(engine, [request(0, tokens=LONG, conversation="x")])
    texts(engine, [request(1, tokens=LONG, conversation="y"), request(0, tokens=LONG)])
    assert engine.stats.known_tokens == 0
    texts(engine, [request(1, tokens=LONG, conversation="x")])
    assert engine.stats.known_tokens == 192


class Failing:
    """Fails once some passes have gone well."""

    def __init__(self, forward, error):
        self.forward, self.error, self.passes = forward, error, 0

    def __call__(self, *args):
        self.passes += 1
        if self.passes == 4:
            raise self.error
        return self.forward(*args)


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (
            torch.OutOfMemoryError("tried to allocate"),
            (
                ConfigError,
                r"out of memory reading 3 rows .* KV cache of 0\.\d\d GiB \(16 slots of 256 .* lower the engine's slots",
            ),
        ),
        (RuntimeError("a bug"), (RuntimeError, "a bug")),
    ],
)
def test_the_engine_survives_what_a_pass_raises(model, error, seen):
    engine = Engine(model)
    expected, _ = texts(engine, requests())
    engine.forward, kept = Failing(engine.forward, error), engine.forward
    with pytest.raises(seen[0], match=seen[1]):
        texts(engine, requests())
    assert idle(engine)
    engine.forward = kept
    assert texts(engine, requests())[0] == expected


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        EngineConfig(slots=0)


class Recording:
    """Keeps what each mixture read and the logits it got."""

    def __init__(self, forward):
        self.forward, self.seen = forward, {}

    def __call__(self, chunks, starts, first, mixtures):
        logits = self.forward(chunks, starts, first, mixtures)
        for mixture, chunk, row in zip(mixtures, chunks, logits, strict=True):
            tokens, kept = self.seen.setdefault(mixture, ([], {}))
            tokens += chunk
            kept[len(tokens)] = row
        return logits


def test_on_the_embedded_base_greedy_parts_ways_only_within_numeric_error():
    """bfloat16, 8 rows, each with a mixture of its own."""
    model = routed(load_base(BaseConfig()), 0.02)
    prompts = model.base.tokenizer(["The ship", "My dear sir, it was", "Fever and a cough are signs of"] * 3)["input_ids"]
    batch = [
        Request(p, np.array([i / 8, 1 - i / 8]), settings=GenerationConfig(max_new_tokens=24)) for i, p in enumerate(prompts)
    ]
    seen = []
    for runs in ([batch], [[one] for one in batch]):
        engine = Engine(model, EngineConfig(prefill_tokens=64, prefix_bytes=0))
        engine.forward = recording = Recording(engine.forward)
        for run in runs:
            texts(engine, run)
        seen.append(recording.seen)
    errors, sizes, gaps = [], [], []
    for (tokens, logits), (other, others) in ((seen[0][mixture], seen[1][mixture]) for mixture in seen[0]):
        shared = [end for end in sorted(logits.keys() & others.keys()) if tokens[:end] == other[:end]]
        errors += [float((logits[end] - others[end]).abs().max()) for end in shared]
        sizes += [float(others[end].abs().max()) for end in shared]
        if tokens != other:
            first, second = others[shared[-1]].topk(2).values.tolist()
            gaps.append(first - second)
    assert max(errors) < 4 * torch.finfo(torch.bfloat16).eps * max(sizes)
    assert all(gap <= 2 * max(errors) for gap in gaps), (gaps, max(errors))
    assert len(gaps) < len(batch)
