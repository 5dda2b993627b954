"""What the recipe's settings change in a pass, and what they must not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_base
from test_trainer import JOBS, SCHEDULE, SETTINGS, distance, examples, flat, train

from moe_router.errors import LibraryError
from moe_router.experts.adapters import SHARED
from moe_router.experts.nats import token_nats
from moe_router.experts.optim import LossScale
from moe_router.experts.schedule import Outcome, Schedule, plan_rows
from moe_router.experts.trainer import Checkpointing, Trainer

SHARED_SETTINGS = (SETTINGS, 1e-2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def plain(base):
    return train(base, JOBS, replace(SCHEDULE, dropout=0.2), SHARED_SETTINGS)[0]


@pytest.mark.parametrize("change", [{"recompute": True}, {"micro_tokens": 30}, {"micro_tokens": 1, "recompute": True}])
def test_saving_memory_leaves_the_adapters_as_they_are(base, plain, change):
    saving, _ = train(base, JOBS, replace(SCHEDULE, dropout=0.2, **change), SHARED_SETTINGS)
    for name, values in plain.items():
        assert distance(saving[name], values) < 2e-4, name


def test_recomputing_keeps_less_for_the_backward_pass(base):
    kept = {}
    for recompute in (False, True):
        trainer = Trainer(base, JOBS, replace(SCHEDULE, recompute=recompute))
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with trainer.model, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer._pass_rows([[JOBS[0].examples[0]]], np.array([0]), trainer.model.route(np.eye(3)[:1]), {0: 1})
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False]
    assert all("forward" not in vars(layer) for layer in base.model.modules())


@pytest.mark.parametrize("optimizer", ["paged_adamw_32bit", "paged_adamw_8bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_bitsandbytes_optimisers_follow_adamw_and_resume_bit_for_bit(base, tmp_path, optimizer):
    schedule = replace(SCHEDULE, optimizer=optimizer)
    jobs = [replace(job, settings=replace(SETTINGS, rank=64)) for job in JOBS]  # large enough for 8-bit moments
    whole, _ = train(base, jobs, schedule)
    reference, _ = train(base, jobs)
    for name, values in whole.items():
        assert distance(values, reference[name]) < (0.02 if optimizer.endswith("32bit") else 0.2), name
    saving = Checkpointing(tmp_path / "run.safetensors", 1e9, "x")
    first = Trainer(base, jobs, schedule)
    with first.model:
        for _ in range(4):
            first.train_step()
        saving.save(first)
    resumed, _ = train(base, jobs, schedule, checkpoint=saving)
    for name, values in whole.items():
        assert torch.equal(resumed[name], values), name


def test_steps_of_a_fixed_number_repeat_the_records():
    schedule = Schedule(steps=30, row_tokens=24)
    job = replace(JOBS[2], rows_per_step=2)
    rows = plan_rows(job, schedule)
    assert len(rows) == 60
    assert {i for row in rows for i in row} == set(range(4))


@pytest.mark.parametrize(("decay", "half", "end"), [("linear", 0.55, 0.1), ("cosine", 0.55, 0.1), ("constant", 1.0, 1.0)])
def test_schedules(decay, half, end):
    schedule = Schedule(warmup=0.1, decay=decay)
    rates = [schedule.rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == 1.0
    assert rates[100 + 450] == pytest.approx(half)
    assert rates[-1] == pytest.approx(end, abs=2e-3)


def test_half_precision_scales_the_loss_and_recovers_from_overflow(tmp_path):
    base = tiny_base(tmp_path, "float16")
    trainer = Trainer(base, JOBS, SCHEDULE)
    trainer.scale = LossScale(2.0**40)
    with trainer.model:
        trainer.train_step()
        assert 1 < trainer.scale.value < 2.0**40
        assert not any(outcome.failed for outcome in trainer.outcomes.values())
        assert all(outcome.steps <= 1 for outcome in trainer.outcomes.values())
        trainer.run()
    reference, _ = train(tiny_base(tmp_path / "fp32"), JOBS)
    for name, values in reference.items():
        assert distance(flat(trainer.model.factors(name)), values) < 0.1, name


def test_the_loss_scale_rises_again():
    scale = LossScale(2.0)
    for _ in range(200):
        scale.passed()
    assert scale == LossScale(4.0)
    assert not LossScale().lower()


def test_the_best_state_is_kept_and_the_expert_stopped(base):
    """Trained on noise, evaluated on other noise: the tune loss climbs from some step on."""
    job = replace(JOBS[0], tune=examples(6, 7), learning_rate=3e-2)
    schedule = replace(SCHEDULE, steps=60, decay="constant", evaluate_every=5, patience=2)
    found, trainer = train(base, [job, replace(JOBS[1], tune=examples(6, 8))], schedule)
    outcome = trainer.outcomes["a"]
    assert "no better" in outcome.stopped
    assert outcome.steps < 60
    best = min(outcome.evaluations, key=lambda e: e[1])[0]
    assert outcome.best_step == best < outcome.steps
    alone = Trainer(base, [job], replace(schedule, evaluate_every=0, patience=0))
    with alone.model:
        for _ in range(best):
            alone.train_step()
        assert distance(found["a"], flat(alone.model.factors("a"))) < 2e-4


def test_one_run_with_evaluations_is_a_sweep_of_steps(base):
    """At a constant rate, what it keeps is what a run of only so many steps ends with."""
    job = replace(JOBS[0], tune=examples(6, 7), learning_rate=3e-2)
    schedule = replace(SCHEDULE, steps=60, decay="constant", warmup=0.0, evaluate_every=5, patience=2)
    found, trainer = train(base, [job], schedule)
    outcome = trainer.outcomes["a"]
    assert outcome.best_step < outcome.steps < 60
    alone, _ = train(base, [job], replace(schedule, steps=outcome.best_step, evaluate_every=0, patience=0))
    assert distance(found["a"], alone["a"]) < 1e-6


def test_with_a_shared_expert_all_are_judged_together(base):
    jobs = [replace(job, tune=examples(4, 20 + i), learning_rate=3e-2) for i, job in enumerate(JOBS)]
    schedule = replace(SCHEDULE, steps=60, decay="constant", evaluate_every=5, patience=1)
    _, trainer = train(base, jobs, schedule, SHARED_SETTINGS)
    assert all(outcome.stopped for outcome in trainer.outcomes.values())
    own = [trainer.outcomes[job.name].evaluations for job in jobs]
    joint = trainer.outcomes[SHARED].evaluations
    assert {len(found) for found in own} == {len(joint)}
    tokens = [sum(e.target_tokens for e in job.tune) for job in jobs]
    mean = sum(found[0][1] * count for found, count in zip(own, tokens, strict=True)) / sum(tokens)
    assert joint[0][1] == pytest.approx(mean)
    assert len({outcome.best_step for outcome in trainer.outcomes.values()}) == 1


def test_climbing_losses_are_divergence():
    assert not Outcome(losses=[3.0] * 60).diverged
    assert not Outcome(losses=[5.0] * 20 + [1.0] * 20 + [2.0] * 20).diverged
    assert Outcome(losses=[3.0] * 40 + [4.5] * 20).diverged


def test_a_diverging_expert_is_stopped_and_the_others_go_on(base):
    trainer = Trainer(base, JOBS[:2], replace(SCHEDULE, steps=10))
    trainer.outcomes["b"].losses = [1.0] * 20 + [3.0] * 19  # the random base's own loss is 10
    with trainer.model:
        trainer.run()
    assert "diverged" in trainer.outcomes["b"].failed
    assert trainer.outcomes["b"].steps == 1
    assert trainer.outcomes["a"].steps == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_nats_are_torchs_cross_entropy(dtype, monkeypatch):
    monkeypatch.setattr("moe_router.experts.nats.CHUNK_NUMBERS", 100)
    torch.manual_seed(0)
    logits = (torch.randn(13, 30) * 4).to(dtype).requires_grad_()
    other = logits.detach().clone().requires_grad_()
    labels, weights = torch.randint(30, (13,)), torch.rand(13)
    ours = token_nats(logits, labels)
    theirs = torch.nn.functional.cross_entropy(other.float(), labels, reduction="none")
    torch.testing.assert_close(ours, theirs)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(logits.grad, other.grad)


def test_eva_starts_from_the_main_directions_of_each_layers_inputs(base):
    schedule = replace(SCHEDULE, start="eva", epochs=40)
    jobs = [replace(job, settings=replace(SETTINGS, rank=2)) for job in JOBS]
    trainer = Trainer(base, jobs, schedule, (replace(SETTINGS, rank=2), 1e-2))
    with trainer.model:
        for name in ("a", SHARED):
            for a, b in trainer.model.factors(name).values():
                torch.testing.assert_close(a @ a.T, torch.eye(2), rtol=1e-4, atol=1e-4)
                assert not b.any()
        first = next(iter(trainer.model.layers))
        a, _ = trainer.model.factors("a")[first]
        captured = _inputs_of(trainer, first)
    inputs = captured - captured.mean(0)
    main = torch.linalg.svd(inputs, full_matrices=False).Vh[:2]
    assert float(torch.linalg.svdvals(a @ main.T).min()) > 0.9  # the same plane


def _inputs_of(trainer, path):
    """What layer `path` reads where job a's records are answered."""
    kept = []
    handle = trainer.model.layers[path].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    for example in trainer.jobs[0].examples:
        with torch.no_grad():
            trainer.base.model(input_ids=torch.tensor([example.tokens]))
        kept[-1] = kept[-1][0, example.prompt_tokens - 1 : -1]
    handle.remove()
    return torch.cat(kept)


def test_eva_trains_the_same_experts_together_and_apart(base):
    schedule = replace(SCHEDULE, start="eva", steps=8)
    jobs = [replace(job, settings=replace(SETTINGS, rank=2)) for job in JOBS[:2]]
    together, _ = train(base, jobs, schedule)
    for job in jobs:
        alone, _ = train(base, [job], schedule)
        assert distance(together[job.name], alone[job.name]) < 2e-4


def test_eva_needs_data(base):
    with pytest.raises(LibraryError, match="kaiming"):
        Trainer(base, [replace(JOBS[2], settings=replace(SETTINGS, rank=64))], replace(SCHEDULE, start="eva", epochs=1))
