"""Training's form for GPUs, which runs on CPUs too: the gradients of the other forms, and a broken expert kept apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_base
from test_trainer import JOBS, SCHEDULE, SETTINGS, distance, flat

from moe_router.experts.adapters import SHARED, RankLayout, RoutedModel
from moe_router.experts.recompute import recomputing
from moe_router.experts.together import Together
from moe_router.experts.trainer import Trainer

LAYOUT = RankLayout(("a", "b", "c"), (4, 2, 4), shared_rank=3)
SCALES = {"a": 2.0, "b": 1.0, "c": 0.5, SHARED: 1.5}
TOKENS = torch.arange(20, 44).reshape(4, 6)
WEIGHTS = np.array([[1, 0, 0], [0, 0.25, 0.75], [0, 1, 0], [0, 0, 0]], dtype=np.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def gradients(base, form, recompute=False, keep=False):
    """Of all factors, with the logits."""
    with RoutedModel(base, LAYOUT, SCALES, torch.float32) as model:
        draw = torch.Generator().manual_seed(1)
        for layer in model.layers.values():
            for factor in (layer.A, layer.B):
                factor.data[:-1] = torch.randn(factor[:-1].shape, generator=draw) * 0.1
        together = form == "together"
        route = Together(model, model.gates(WEIGHTS), keep) if together else model.route(WEIGHTS, form=form)
        with model.routed(route), recomputing(base.model, recompute):
            logits = base.model(input_ids=TOKENS).logits
            logits.float().square().mean().backward()
        grads = [factor.grad for layer in model.layers.values() for factor in (layer.A, layer.B)]
    assert all(not grad[-1].any() for grad in grads)
    return torch.cat([grad.flatten() for grad in grads]), logits.detach()


@pytest.mark.parametrize(("recompute", "keep"), [(False, False), (True, False), (True, True)])
def test_gradients_are_those_of_the_gathered_form(base, recompute, keep):
    expected, expected_logits = gradients(base, "gathered")
    found, logits = gradients(base, "together", recompute, keep)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("keep", [False, True])
def test_over_nf4_too(tmp_path, keep):
    base = tiny_base(tmp_path, "float32", "nf4")
    expected, _ = gradients(base, "gathered")
    found, _ = gradients(base, "together", True, keep)
    assert distance(found, expected) < 1e-5


def test_one_pass_equals_separate_runs_and_the_gathered_form(base):
    together = trained(base, JOBS, "together")[0]
    gathered = trained(base, JOBS, "gathered")[0]
    for job in JOBS:
        alone = trained(base, [job], "together")[0]
        assert distance(together[job.name], alone[job.name]) < 2e-4
        assert distance(together[job.name], gathered[job.name]) < 2e-4


def test_a_shared_expert_trains_alike(base):
    together, gathered = (trained(base, JOBS, form, (SETTINGS, 1e-2))[0] for form in ("together", "gathered"))
    for name, values in gathered.items():
        assert distance(together[name], values) < 2e-4


def test_a_broken_expert_stops_and_the_others_go_on_in_this_form(base):
    bad = replace(JOBS[2], learning_rate=1e20)
    schedule = replace(SCHEDULE, epochs=6)
    together, trainer = trained(base, [JOBS[0], JOBS[1], bad], "together", schedule=schedule)
    assert "not finite" in trainer.outcomes["c"].failed
    assert not together["c"].any()
    alone, _ = trained(base, JOBS[:2], "together", schedule=schedule)
    for name in ("a", "b"):
        assert distance(together[name], alone[name]) < 2e-4


def trained(base, jobs, form, shared=None, schedule=SCHEDULE):
    trainer = Trainer(base, jobs, schedule, shared)
    trainer.form = form
    with trainer.model as model:
        trainer.run()
        return {name: flat(model.factors(name)) for name in model.layout.slots}, trainer


@pytest.mark.parametrize("form", ["gathered", "together"])
def test_recomputing_trains_to_the_same_experts_in_bfloat16(tmp_path, form):
    base = tiny_base(tmp_path, "bfloat16", "nf4")
    schedule = replace(SCHEDULE, epochs=1)
    kept = trained(base, JOBS, form, schedule=schedule)[0]
    again = trained(base, JOBS, form, schedule=replace(schedule, recompute=True))[0]
    for name, values in kept.items():
        assert distance(again[name], values) < 1e-3
