"""From a recipe to a library: replay, passes of fewer experts, targets, what the cards say."""

import numpy as np
import pytest
import torch
from tiny_library import NAMES, SETTINGS, close, plan, settings, split

from moe_router.experts.adapters import SHARED
from moe_router.experts.base import load_base
from moe_router.experts.library import Library
from moe_router.experts.train import NEAREST, Split, likely_mixtures, make_trainer, passes, replayed, train_library
from moe_router.experts.verify import verify


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return settings(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(config):
    return load_base(config.base)


def changed(config, **settings):
    return config.override({"experts": settings})


def test_replay_shows_each_expert_a_share_of_the_others(config, base):
    wanted = plan(changed(config, replay=0.5))
    own = {name: int((wanted.train.labels == i).sum()) for i, name in enumerate(NAMES)}
    for index, name in enumerate(NAMES):
        more = replayed(wanted, index)
        assert len(more) == own[name] // 2
        assert not any(wanted.train.labels[i] == index for i in more)
        assert more == replayed(wanted, index)
    trainer = make_trainer(base, wanted)
    trainer.model.detach()
    assert [len(job.examples) for job in trainer.jobs] == [own[name] * 3 // 2 for name in NAMES]
    assert replayed(plan(config), 0) == []
    assert replayed(plan(changed(config, replay=0.5), mode="isolated"), 0) == []


def test_rates_are_judged_where_a_gate_would_send_a_query():
    places = np.repeat(np.eye(3, dtype=np.float32), [NEAREST, NEAREST // 2, NEAREST // 4], axis=0)
    train = Split([None] * len(places), places.argmax(1), places)
    asked = np.array([[1, 0, 0], [0, 1, 0.5], [0, 0.1, 1]], dtype=np.float32)
    found = likely_mixtures(train, Split([None] * 3, np.zeros(3, dtype=np.int64), asked), 3)
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found.sum(1), 1)
    np.testing.assert_allclose(found[0], [1, 0, 0])
    assert (found > 0).sum(1).max() == 2
    assert found[1].argmax() == 1
    np.testing.assert_allclose(likely_mixtures(train, Split([None], np.zeros(1, dtype=np.int64), asked[:1]), 3), [[1, 0, 0]])


def test_isolated_experts_are_the_same_in_passes_of_one(config, base, tmp_path):
    found = []
    for at_once in (0, 1):
        wanted = plan(changed(config, experts_per_pass=at_once), mode="isolated")
        assert len(passes(wanted, base)) == (3 if at_once else 1)
        found.append(train_library(tmp_path / str(at_once), wanted, tmp_path / "c" / "run.safetensors", base=base))
    for name in NAMES:
        for path, (a, b) in found[0].adapter(name).factors.items():
            assert close(found[1].adapter(name).factors[path][0], a, 1e-3)
            assert close(found[1].adapter(name).factors[path][1], b, 1e-3)
    assert list((tmp_path / "c").iterdir()) == []
    assert passes(plan(changed(config, experts_per_pass=1)), base) == [list(NAMES)]  # the shared one learns from every row


def test_the_shared_expert_can_come_first_and_stay(config, base, tmp_path):
    found = []
    for at_once in (0, 1):
        wanted = plan(changed(config, shared_first=True, experts_per_pass=at_once))
        assert passes(wanted, base)[0] == [SHARED]
        found.append(train_library(tmp_path / str(at_once), wanted, tmp_path / "c" / "run.safetensors", base=base))
        assert found[-1].has_shared
        assert all(check.ok for check in verify(found[-1], split("tune"), NAMES, base))
    one, other = found
    assert one.cards[SHARED]["sha256"] == other.cards[SHARED]["sha256"] == other.cards["books"]["beside"]
    for name in NAMES:  # independent jobs over one frozen expert
        for path, (a, b) in one.adapter(name).factors.items():
            assert close(other.adapter(name).factors[path][0], a, 1e-3)
            assert close(other.adapter(name).factors[path][1], b, 1e-3)


def test_cards_tell_how_the_training_went(config, base, tmp_path):
    wanted = plan(
        changed(config, evaluate_every=4, patience=3, gradient_checkpointing=True, micro_tokens=64, schedule="cosine")
    )
    library = train_library(tmp_path / "library", wanted, tmp_path / "run.safetensors", base=base)
    shared = library.cards[SHARED]
    assert [step for step, _ in shared["evaluations"]] == [4, 8, 12]
    assert shared["best_step"] in (4, 8, 12)
    assert shared["beside"] == ""
    for name in NAMES:
        card = library.cards[name]
        assert card["beside"] == shared["sha256"]
        assert [step for step, _ in card["evaluations"]] == [4, 8, 12]
        assert card["recipe"]["schedule"] == "cosine"
        assert card["parameters"] == sum(a.numel() + b.numel() for a, b in library.adapter(name).factors.values())
        assert len(card["losses"]) == card["steps"] == SETTINGS["steps"]
    assert Library.load(library.path).digest == library.digest


def test_how_a_training_runs_is_no_part_of_what_it_trains(config):
    one = plan(config).inputs
    assert plan(changed(config, checkpoint_seconds=5.0, tensorboard=True, experts_per_pass=1)).inputs == one
    assert plan(changed(config, rank=3)).inputs != one


def test_equal_plans_are_not_trained_twice_and_others_are(config, base, tmp_path):
    first = train_library(tmp_path / "library", plan(config), tmp_path / "run.safetensors", base=base)
    stamp = (first.path / "books" / "adapter_model.safetensors").stat().st_mtime_ns
    again = train_library(tmp_path / "library", plan(config), tmp_path / "run.safetensors", base=base)
    assert (again.path / "books" / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    other = train_library(tmp_path / "library", plan(config, mode="isolated"), tmp_path / "run.safetensors", base=base)
    assert not other.has_shared
    assert not (other.path / SHARED).exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_libraries_are_stored_in_it(config, tmp_path, dtype):
    wanted = plan(config.override({"base": {"dtype": dtype}}))
    library = train_library(tmp_path / "library", wanted, tmp_path / "run.safetensors")
    kinds = {t.dtype for pair in library.adapter("books").factors.values() for t in pair}
    assert kinds == {getattr(torch, dtype)}
    losses = library.cards["books"]["losses"]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
