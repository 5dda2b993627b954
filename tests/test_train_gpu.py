"""Training on CUDA: what holds on the CPU holds there, in every form and with fused layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_base
from test_trainer import JOBS, SCHEDULE, distance, flat

from moe_router import kernels
from moe_router.experts.trainer import Checkpointing, Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
FORMS = ["gathered", "together"]


def make(base, jobs, form, fused=False, **schedule):
    trainer = Trainer(base, jobs, replace(SCHEDULE, **schedule))
    trainer.form = form
    trainer.ops = kernels.for_training(base.device) if fused else None
    return trainer


def trained(base, jobs, form, fused=False, **schedule):
    trainer = make(base, jobs, form, fused, **schedule)
    with trainer.model as model:
        trainer.run()
        return {job.name: flat(model.factors(job.name)) for job in jobs}, trainer


def gradients(trainer):
    """Of all factors for the first row of every job."""
    with trainer.model as model:
        draw = torch.Generator().manual_seed(1)
        for layer in model.layers.values():
            for factor in (layer.A, layer.B):
                factor.data[:-1] = torch.randn(factor[:-1].shape, generator=draw).to(factor.device) * 0.1
        rows = [[job.examples[i] for i in trainer.plans[job.name][0]] for job in trainer.jobs]
        owners = np.arange(len(rows))
        targets = {i: sum(e.target_tokens for e in row) for i, row in enumerate(rows)}
        trainer._pass_rows(rows, owners, trainer._route(owners, [0] * len(rows), trainer.form), targets)
        return torch.cat([f.grad.flatten() for layer in model.layers.values() for f in (layer.A, layer.B)])


@pytest.mark.parametrize(("form", "fused"), [*((form, False) for form in FORMS), ("together", True)])
def test_one_pass_equals_separate_runs(tmp_path, form, fused):
    base = tiny_base(tmp_path)
    together, _ = trained(base, JOBS, form, fused)
    for job in JOBS:
        alone, _ = trained(base, [job], form, fused)
        assert distance(together[job.name], alone[job.name]) < 1e-3


@pytest.mark.parametrize(("form", "fused"), [("gathered", False), ("together", False), ("together", True)])
def test_checkpointing_over_nf4_leaves_the_gradients_as_they_are(tmp_path, form, fused):
    base = tiny_base(tmp_path, "bfloat16", "nf4")
    kept = gradients(make(base, JOBS, form, fused))
    again = gradients(make(base, JOBS, form, fused, recompute=True))
    assert kept.norm() > 0
    assert distance(again, kept) < 1e-3


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("bfloat16", 0.05)])
@pytest.mark.parametrize(("form", "fused"), [("together", False), ("together", True)])
def test_gradients_are_those_of_the_plain_gathered_form(tmp_path, dtype, limit, form, fused):
    base = tiny_base(tmp_path, dtype)
    expected = gradients(make(base, JOBS, "gathered"))
    assert distance(gradients(make(base, JOBS, form, fused)), expected) < limit


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_the_loss_falls_over_nf4(tmp_path, optimizer):
    base = tiny_base(tmp_path, "bfloat16", "nf4")
    _, trainer = trained(base, JOBS, "together", epochs=12, recompute=True, optimizer=optimizer)
    for job in JOBS:
        losses = trainer.outcomes[job.name].losses
        assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1


@pytest.mark.parametrize("form", FORMS)
def test_a_broken_expert_stops_and_the_others_go_on(tmp_path, form):
    base = tiny_base(tmp_path)
    bad = replace(JOBS[2], learning_rate=1e20)
    together, trainer = trained(base, [JOBS[0], JOBS[1], bad], form, epochs=6)
    assert "not finite" in trainer.outcomes["c"].failed
    alone, _ = trained(base, JOBS[:2], form, epochs=6)
    for name in ("a", "b"):
        assert distance(together[name], alone[name]) < 1e-3


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_an_interrupted_run_resumes(tmp_path, optimizer):
    base = tiny_base(tmp_path)
    whole, _ = trained(base, JOBS, "together", optimizer=optimizer)
    checkpoint = Checkpointing(tmp_path / "run.safetensors", 0.0, "digest")
    first = make(base, JOBS, "together", optimizer=optimizer)
    with first.model:
        for _ in range(first.steps // 2):
            first.train_step()
        checkpoint.save(first)
    second = make(base, JOBS, "together", optimizer=optimizer)
    with second.model as model:
        second.run(checkpoint)
        for name, values in whole.items():
            assert distance(flat(model.factors(name)), values) < 1e-3
