"""What a pass tells while it trains, from real steps of a tiny base."""

import numpy as np
import pytest
from models import tiny_base

from moe_router.experts.adapters import SHARED
from moe_router.experts.encode import Example
from moe_router.experts.peft_format import LoraSettings
from moe_router.experts.trainer import Checkpointing, Job, Schedule, Trainer
from moe_router.progress import Silent

SETTINGS = LoraSettings(2, 4.0, True)


class Heard(Silent):
    def __init__(self):
        self.told, self.done, self.notes = [], 0, []

    def lanes(self, lanes):
        self.told.append({lane.name: lane for lane in lanes})

    def advance(self, amount, note=""):
        self.done += amount
        self.note_line = note

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def jobs(**settings):
    random = np.random.default_rng(0)
    made = []
    for name, count in (("large", 12), ("small", 4)):
        rows = [Example(tuple(random.integers(2, 200, 10).tolist()), 5) for _ in range(count)]
        made.append(Job(name, rows, SETTINGS, 1e-2, tune=rows[:3], **settings))
    return made


def test_every_expert_is_told_from_beginning_to_end(base):
    heard = Heard()
    trainer = Trainer(base, jobs(), Schedule(epochs=2, row_tokens=24, evaluate_every=4), (SETTINGS, 1e-2))
    with trainer.model:
        outcomes = trainer.run(progress=heard)
    first, middle, last = heard.told[0], heard.told[len(heard.told) // 2], heard.told[-1]
    assert list(first) == [SHARED, "large", "small"]
    assert all(lane.done == 0 and lane.loss is None and lane.seconds_left is None for lane in first.values())
    assert middle["large"].seconds_left > 0 and middle["large"].tokens_per_second > 0
    assert {name: lane.total for name, lane in last.items()} == {SHARED: 320, "large": 240, "small": 80}
    for name, lane in last.items():
        assert lane.done == lane.total == outcomes[name].tokens
        assert lane.state == "done" and lane.seconds_left is None
        assert lane.loss == pytest.approx(np.mean(outcomes[name].losses[-10:]))
    assert last[SHARED].tune == outcomes[SHARED].evaluations[-1][1]
    assert heard.done == 320
    assert heard.note_line.startswith(f"step {trainer.steps}/{trainer.steps}, loss ")


def test_a_resumed_pass_counts_what_was_done_but_not_as_fast(base, tmp_path):
    schedule, saving = Schedule(epochs=2, row_tokens=24), Checkpointing(tmp_path / "run.safetensors", 0.0, "digest")
    begun = Trainer(base, jobs(), schedule)
    with begun.model:
        for _ in range(4):
            begun.train_step()
        saving.save(begun)
    heard = Heard()
    trainer = Trainer(base, jobs(), schedule)
    with trainer.model:
        trainer.run(saving, heard)
    assert heard.told[0]["large"].done == begun.outcomes["large"].tokens > 0
    assert heard.told[0]["large"].tokens_per_second is None
    assert heard.done == 320


def test_an_expert_that_stops_is_named_once(base):
    heard = Heard()
    broken, fine = jobs()
    broken = Job("large", broken.examples, SETTINGS, float("inf"))
    trainer = Trainer(base, [broken, fine], Schedule(epochs=3, row_tokens=24))
    with trainer.model:
        trainer.run(progress=heard)
    assert heard.told[-1]["large"].state == "failed"
    assert heard.told[-1]["small"].state == "done"
    assert len(heard.notes) == 1 and heard.notes[0].startswith("expert large stopped: ")
