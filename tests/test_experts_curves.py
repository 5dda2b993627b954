"""Logs and pictures of a training."""

from dataclasses import replace

import numpy as np
import pytest
from models import tiny_base
from test_trainer import JOBS, SCHEDULE, SETTINGS, examples

from moe_router.errors import ConfigError
from moe_router.experts.curves import Log, draw_losses, smoothed
from moe_router.experts.trainer import Checkpointing, Trainer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def test_smoothing_is_a_trailing_mean():
    losses = np.random.default_rng(0).random(50).tolist()
    smooth = smoothed(losses)
    assert smooth[0] == pytest.approx(losses[0])
    assert smooth[10] == pytest.approx(np.mean(losses[:11]))
    assert smooth[-1] == pytest.approx(np.mean(losses[-20:]))


def test_the_picture_is_a_png_also_without_losses(tmp_path):
    cards = {"shared": {"losses": [3.0, 2.0, 1.0]}, "books": {"losses": [2.0, 1.0], "evaluations": [[1, 2.5], [2, 2.0]]}}
    for number, some in enumerate((cards, {}, {"imported": {}})):
        draw_losses(some, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'moe-router\[tensorboard\]'"):
        Log(tmp_path)


def test_tensorboard_gets_every_step_once_also_over_a_resume(base, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    jobs = [replace(job, tune=examples(3, 5)) for job in JOBS]
    schedule = replace(SCHEDULE, evaluate_every=2)
    saving = Checkpointing(tmp_path / "run.safetensors", 1e9, "x")
    first = Trainer(base, jobs, schedule, (SETTINGS, 1e-2))
    with first.model:
        log = Log(tmp_path / "logs")
        for _ in range(5):
            first.train_step()
            log.write(first)
        log.close()
        saving.save(first)
    second = Trainer(base, jobs, schedule, (SETTINGS, 1e-2))
    with second.model:
        log = Log(tmp_path / "logs")
        second.run(saving, log=log)
        log.close()
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    for name, outcome in second.outcomes.items():
        told = {event.step: event.value for event in events.Scalars(f"loss/{name}")}
        assert [told[step + 1] for step in range(outcome.steps)] == pytest.approx(outcome.losses, rel=1e-5)
        assert events.Scalars(f"learning rate/{name}")
        assert events.Scalars(f"gradient norm/{name}")
    assert events.Scalars("tune loss/shared")
