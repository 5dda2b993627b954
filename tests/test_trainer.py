from dataclasses import replace

import numpy as np
import pytest
import torch
from models import tiny_base

from moe_router.experts.adapters import SHARED
from moe_router.experts.encode import Example
from moe_router.experts.peft_format import LoraSettings
from moe_router.experts.scoring import score_examples
from moe_router.experts.trainer import Checkpointing, Job, Schedule, Trainer, plan_rows
from moe_router.progress import Silent

SETTINGS = LoraSettings(4, 8.0, True)
SCHEDULE = Schedule(epochs=2, row_tokens=24, weight_decay=0.01, clip=0.5)


def examples(count, seed):
    """Random token sequences of uneven length."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(random.integers(6, 16))
        made.append(Example(tuple(random.integers(2, 200, length).tolist()), int(random.integers(2, length - 2))))
    return made


JOBS = [
    Job("a", examples(9, 1), SETTINGS, 1e-2),
    Job("b", examples(21, 2), SETTINGS, 5e-3),
    Job("c", examples(4, 3), SETTINGS, 1e-2),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def train(base, jobs, schedule=SCHEDULE, shared=None, checkpoint=None):
    trainer = Trainer(base, jobs, schedule, shared)
    with trainer.model as model:
        trainer.run(checkpoint)
        return {name: flat(model.factors(name)) for name in model.layout.slots}, trainer


def flat(factors):
    return torch.cat([t.flatten().clone() for pair in factors.values() for t in pair])


def distance(one, other):
    """Relative; single elements may differ more, where AdamW divides a rounding error by itself."""
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_one_pass_equals_separate_runs(base, dropout):
    """Isolated mode: AdamW, clipping, packing, dropout, slices of unequal length."""
    schedule = replace(SCHEDULE, dropout=dropout)
    together, _ = train(base, JOBS, schedule)
    for job in JOBS:
        alone, _ = train(base, [job], schedule)
        assert distance(together[job.name], alone[job.name]) < 2e-4


def test_training_lowers_the_loss_of_the_own_slice(base):
    trainer = Trainer(base, JOBS, replace(SCHEDULE, epochs=12))
    with trainer.model as model:
        before = score_examples(model, JOBS[1].examples, np.zeros((21, 3))).perplexity
        trainer.run()
        own = score_examples(model, JOBS[1].examples, np.eye(3)[[1] * 21]).perplexity
        other = score_examples(model, JOBS[1].examples, np.eye(3)[[0] * 21]).perplexity
    assert own < 0.7 * before
    assert own < 0.8 * other


def test_interrupted_run_resumes_to_the_same_adapters(base, tmp_path):
    shared = (SETTINGS, 1e-2)
    whole, _ = train(base, JOBS, shared=shared)
    checkpoint = Checkpointing(tmp_path / "run.safetensors", 0.0, "digest")

    class Interrupt(Silent):
        def advance(self, *_):
            self.count = getattr(self, "count", 0) + 1
            if self.count == 5:
                raise KeyboardInterrupt

    trainer = Trainer(base, JOBS, SCHEDULE, shared)
    with trainer.model, pytest.raises(KeyboardInterrupt):
        trainer.run(checkpoint, Interrupt())
    assert 0 < trainer.step < trainer.steps
    resumed, _ = train(base, JOBS, shared=shared, checkpoint=checkpoint)
    for name, values in whole.items():
        assert torch.equal(values, resumed[name]), name


def test_checkpoint_of_another_run_is_not_taken(base, tmp_path):
    path = tmp_path / "run.safetensors"
    first = Trainer(base, JOBS, SCHEDULE)
    with first.model:
        first.train_step()
        Checkpointing(path, 0.0, "one").save(first)
    second = Trainer(base, JOBS, SCHEDULE)
    with second.model:
        assert not Checkpointing(path, 0.0, "two").resume(second)
        assert second.step == 0


@pytest.mark.parametrize("resident", [0, 1 << 30])
def test_evaluation_in_between_leaves_gradients_unchanged(tmp_path, monkeypatch, resident):
    """bitsandbytes on CPUs with AVX512-bf16 repacks 4-bit layers in eval mode; gradients would become zero."""
    monkeypatch.setattr("moe_router.experts.base.RESIDENT_BYTES", resident)
    base = tiny_base(tmp_path, "bfloat16", "nf4")
    assert base.resident == bool(resident)
    plain, _ = train(base, JOBS)
    trainer = Trainer(base, JOBS, SCHEDULE)
    with trainer.model as model:
        while trainer.step < trainer.steps:
            trainer.train_step()
            score_examples(model, JOBS[0].examples, np.eye(3)[[0] * 9])
        watched = {name: flat(model.factors(name)) for name in model.layout.slots}
    for name, values in plain.items():
        assert torch.equal(values, watched[name]), name


def test_a_broken_expert_stops_and_the_others_go_on(base):
    bad = replace(JOBS[2], learning_rate=1e20)
    together, trainer = train(base, [JOBS[0], JOBS[1], bad], replace(SCHEDULE, epochs=6))
    assert "not finite" in trainer.outcomes["c"].failed
    alone, _ = train(base, JOBS[:2], replace(SCHEDULE, epochs=6))
    for name in ("a", "b"):
        assert distance(together[name], alone[name]) < 2e-4


def test_shared_expert_learns_from_every_row(base):
    _, trainer = train(base, JOBS, shared=(SETTINGS, 1e-2))
    shared = trainer.outcomes[SHARED]
    assert shared.steps == trainer.steps
    assert shared.target_tokens == sum(trainer.outcomes[j.name].target_tokens for j in JOBS)


def test_steps_of_a_small_slice_are_spread_over_the_whole_pass(base):
    trainer = Trainer(base, JOBS, SCHEDULE, (SETTINGS, 1e-2))
    with trainer.model:
        taken = {job.name: [] for job in JOBS}
        while trainer.step < trainer.steps:
            before = {name: trainer.outcomes[name].steps for name in taken}
            at = trainer.step
            trainer.train_step()
            for name in taken:
                taken[name] += [at] * (trainer.outcomes[name].steps - before[name])
    for name, steps in taken.items():
        gaps = np.diff([-1, *steps])
        assert len(steps) == trainer.lengths[name]
        assert steps[-1] == trainer.steps - 1
        assert gaps.max() - gaps.min() <= 1


def test_rows_hold_every_example_once_an_epoch():
    rows = plan_rows(JOBS[1], SCHEDULE)
    assert sorted(i for row in rows for i in row) == sorted(list(range(21)) * 2)
    assert all(len(row) == 1 or sum(len(JOBS[1].examples[i].tokens) for i in row) <= 24 for row in rows)


def test_part_of_an_epoch_takes_the_same_records_however_they_are_sliced():
    ids = [f"record {i}" for i in range(21)]
    schedule = replace(SCHEDULE, epochs=0.5)
    whole = replace(JOBS[1], identity=ids)
    halves = [
        replace(JOBS[1], name="x", examples=whole.examples[:10], identity=ids[:10]),
        replace(JOBS[1], name="y", examples=whole.examples[10:], identity=ids[10:]),
    ]
    taken = {ids[i] for row in plan_rows(whole, schedule) for i in row}
    split = {job.identity[i] for job in halves for row in plan_rows(job, schedule) for i in row}
    assert taken == split
    assert 4 < len(taken) < 17
