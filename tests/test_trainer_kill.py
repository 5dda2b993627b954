"""A run killed with SIGKILL at any moment goes on to the same adapters, bit for bit."""

import time

import pytest
from killed import start
from models import tiny_llama

from moe_router.experts.library import INDEX

SETTINGS = {
    "rank": 4,
    "shared_rank": 4,
    "epochs": 4.0,
    "dropout": 0.1,
    "search_rates": False,
    "checkpoint_seconds": 0.0,
    "evaluate_every": 15,
}


def received(connection):
    """Step numbers that are there, until the process ends."""
    try:
        while True:
            yield connection.recv()
    except (EOFError, ConnectionResetError):
        return


def result(root):
    folder = root / "library"
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        ({"mode": "shared"}, (4, 0.011, 0.003)),
        ({"mode": "isolated", "optimizer": "paged_adamw_8bit", "experts_per_pass": 2}, (3, 9, 0.007)),
    ],
    ids=["joint", "passes"],
)
def test_killed_runs_resume_to_the_same_adapters(tmp_path, settings, kills):
    """Kills after a step, and so many seconds after one: while a checkpoint is being written."""
    base = tiny_llama(tmp_path / "base")
    run, steps = start(tmp_path / "whole", base, **SETTINGS | settings)
    wanted = len(list(received(steps)))
    run.join(60)
    assert run.exitcode == 0
    taken = 0
    for kill in kills:
        run, steps = start(tmp_path / "cut", base, **SETTINGS | settings)
        for step in received(steps):
            taken += 1
            if isinstance(kill, float) or step >= kill:
                time.sleep(kill if isinstance(kill, float) else 0)
                break
        run.kill()
        taken += len(list(received(steps)))
        run.join(60)
        assert run.exitcode == -9
        assert not (tmp_path / "cut" / "library" / INDEX).exists()
        left = [file.name for file in (tmp_path / "cut" / "checkpoints").iterdir() if not file.name.startswith(".")]
        assert len(left) <= (2 if "experts_per_pass" in settings else 1)
    (tmp_path / "cut" / "checkpoints" / ".tmpAbCdEf").write_bytes(b"half written by safetensors")
    run, steps = start(tmp_path / "cut", base, **SETTINGS | settings)
    taken += len(list(received(steps)))
    run.join(60)
    assert run.exitcode == 0
    assert result(tmp_path / "cut") == result(tmp_path / "whole") != {}
    assert wanted <= taken <= wanted + 2 * len(kills)  # it went on where it was, and did not begin anew
    assert list((tmp_path / "cut" / "checkpoints").iterdir()) == []
