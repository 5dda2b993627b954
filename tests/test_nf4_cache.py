"""The NF4 form of a base in the user's cache folder."""

from __future__ import annotations

import collections
import shutil

import pytest
import torch

from moe_router.config import BaseConfig
from moe_router.experts import nf4_cache
from moe_router.experts.base import load_base

PROMPT = torch.arange(5, 40)[None]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(nf4_cache.ENVIRONMENT, str(tmp_path / "cache"))
    return tmp_path / "cache" / "nf4"


def logits() -> torch.Tensor:
    with torch.inference_mode():
        return load_base(BaseConfig()).model(input_ids=PROMPT).logits


def test_the_second_load_reads_the_cache_and_computes_the_same(cache):
    first = logits()
    (folder,) = cache.iterdir()
    assert nf4_cache.whole(folder)
    base = load_base(BaseConfig())
    assert base.model.config.name_or_path == str(folder)
    with torch.inference_mode():
        assert torch.equal(base.model(input_ids=PROMPT).logits, first)


def test_a_damaged_form_is_made_again(cache):
    first = logits()
    (folder,) = cache.iterdir()
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert torch.equal(logits(), first)
    assert nf4_cache.whole(folder)


def test_other_types_have_a_form_of_their_own(cache):
    digest = "of a base"
    assert nf4_cache.place(digest, torch.float16) != nf4_cache.place(digest, torch.bfloat16)
    assert nf4_cache.place(digest, torch.float16) == nf4_cache.place(digest, torch.float16)


def test_a_full_disk_keeps_nothing_and_is_no_error(cache, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 0))
    logits()
    assert not list(cache.iterdir())


def test_an_empty_name_switches_it_off(monkeypatch):
    monkeypatch.setenv(nf4_cache.ENVIRONMENT, "")
    assert nf4_cache.place("of a base", torch.bfloat16) is None
