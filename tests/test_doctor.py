"""What doctor finds, and that it says unknown where it cannot know."""

import hashlib
import json
import shutil

import pytest

from moe_router import machine
from moe_router.config import Config
from moe_router.doctor import EMBEDDED_PATH, Fit, check_nf4, embedded_base, examine, load_of
from moe_router.machine import Device
from moe_router.memory import LLAMA, Demand
from moe_router.workspace import Workspace


@pytest.fixture(scope="module")
def diagnosis(tmp_path_factory):
    return examine(Workspace.find(tmp_path_factory.mktemp("w") / "not" / "there"), Config())


def test_the_document_is_plain_json(diagnosis):
    document = json.loads(json.dumps(diagnosis.to_json(), allow_nan=False))
    assert [base["name"] for base in document["bases"]] == ["7B", "13B", "33B", "65B"]
    for base in document["bases"]:
        for use in ("training", "inference"):
            parts = base[use]
            assert parts["total"] == sum(parts[p] for p in ("weights", "adapters", "working", "runtime"))
            assert set(parts["fits"]) == {device["name"] for device in document["devices"]}
        assert len(base["arithmetic"]) == 3
    assert document["versions"]["torch"] != "not installed"
    assert document["disk_free"] > 0
    assert document["cores"] >= 1


def test_the_lines_show_devices_bases_and_arithmetic(diagnosis):
    text = "\n".join(diagnosis.lines())
    for words in (
        "NF4 on cpu: works",
        "embedded base: 17,283,584 parameters, intact",
        "7B training",
        "65B inference",
        "× 4.127/8",
    ):
        assert words in text


def test_nf4_works_here():
    found = check_nf4("cpu")
    assert found.works
    assert 0.05 < found.relative_error < 0.12


def test_nf4_on_a_device_that_is_not_there():
    found = check_nf4("cuda:99")
    assert not found.works
    assert found.detail
    assert "\n" not in found.detail


def test_fits_is_unknown_where_memory_is():
    gib = 1 << 30
    fit = Fit(LLAMA[0], training=Demand(8 * gib, 0, 0), inference=Demand(2 * gib, 0, 0))
    devices = (Device("cpu", "", 4 * gib, 8 * gib), Device("mps", "", None, None))
    assert fit.fits(fit.training, devices) == {"cpu": False, "mps": None}
    assert fit.fits(fit.inference, devices) == {"cpu": True, "mps": None}


def test_load_counts_the_shared_expert_only_where_there_is_one():
    config = Config().override(
        {"slice": {"k": 4}, "experts": {"rank": 6, "shared_rank": 10, "row_tokens": 32, "batch_tokens": 64, "max_tokens": 48}}
    )
    assert load_of(config).total_rank == 34
    assert load_of(config).step_tokens == 4 * 2 * 48
    assert load_of(config.override({"experts": {"mode": "isolated"}})).total_rank == 24


def test_the_embedded_base_is_intact_and_loads(diagnosis):
    from transformers import AutoConfig, AutoTokenizer

    found = diagnosis.embedded_base
    assert found.intact
    assert found.parameters == 17_283_584
    names = sorted(json.loads((found.path / "sha256.json").read_text()))
    listing = "".join(f"{hashlib.sha256((found.path / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    assert found.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    config, tokenizer = AutoConfig.from_pretrained(found.path), AutoTokenizer.from_pretrained(found.path)
    assert config.eos_token_id == config.bos_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0
    assert config.pad_token_id == tokenizer.pad_token_id == 1
    assert all(path.stat().st_size <= 16 << 20 for path in found.path.iterdir())


def test_a_damaged_embedded_base_is_noticed(tmp_path):
    copy = tmp_path / "base"
    shutil.copytree(EMBEDDED_PATH, copy)
    (copy / "tokenizer_config.json").write_text("{}")
    assert not embedded_base(copy).intact
    (copy / "tokenizer_config.json").unlink()
    assert not embedded_base(copy).intact


def test_unknown_systems_give_no_guess(monkeypatch):
    def unreadable(path):
        return []

    monkeypatch.setattr(machine, "_lines", unreadable)
    assert machine.cpu().free is None
    assert machine.cpu_flags() == ()


def test_a_container_limits_memory(monkeypatch):
    files = {
        "/proc/meminfo": ["MemTotal:  8000000 kB", "MemAvailable:  6000000 kB"],
        "/sys/fs/cgroup/memory.max": ["2048000000"],
        "/sys/fs/cgroup/memory.current": ["48000000"],
    }
    monkeypatch.setattr(machine, "_lines", lambda path: files.get(path, []))
    assert (machine.cpu().free, machine.cpu().total) == (2_000_000_000, 2_048_000_000)
    files["/sys/fs/cgroup/memory.max"] = ["max"]
    assert machine.cpu().total == 8_000_000 * 1024
