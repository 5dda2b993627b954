import shutil

import pytest
import torch
from models import tiny_base, tiny_llama

from moe_router.config import BaseConfig
from moe_router.errors import BaseModelError
from moe_router.experts import base as module
from moe_router.experts import bnb
from moe_router.experts.base import EMBEDDED_PATH, base_digest, load_base

TOKENS = torch.arange(30, 60)[None]


def test_embedded_base_loads_frozen_in_nf4_with_its_own_end_of_text():
    base = load_base(BaseConfig())
    assert base.eos == 0 == base.model.config.eos_token_id
    assert not any(p.requires_grad for p in base.model.parameters())
    assert len(base.linears()) == 7 * 7


def test_resident_weights_are_the_same_numbers_as_nf4(tmp_path, monkeypatch):
    folder = tiny_llama(tmp_path)
    config = BaseConfig(str(folder), "nf4", "float32")
    resident = load_base(config)
    monkeypatch.setattr(module, "RESIDENT_BYTES", 0)
    packed = load_base(config)
    assert resident.resident
    assert not packed.resident
    assert all(bnb.is_4bit(linear) for linear in packed.linears().values())
    assert resident.digest == packed.digest
    with torch.no_grad():
        one, other = (b.model(input_ids=TOKENS).logits for b in (resident, packed))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_digest_tells_bases_apart(tmp_path):
    one, other = tiny_llama(tmp_path / "a", seed=0), tiny_llama(tmp_path / "b", seed=1)
    digests = {base_digest(BaseConfig(str(f), q)) for f in (one, other) for q in ("nf4", "none")}
    assert len(digests) == 4


def test_digest_is_the_same_wherever_the_folder_lies(tmp_path):
    folder = tiny_llama(tmp_path / "a")
    moved = shutil.copytree(folder, tmp_path / "b")
    assert base_digest(BaseConfig(str(folder))) == base_digest(BaseConfig(str(moved)))


def test_damaged_embedded_base_is_named(tmp_path, monkeypatch):
    copy = shutil.copytree(EMBEDDED_PATH, tmp_path / "embedded")
    (copy / "model-00001-of-00003.safetensors").write_bytes(b"nothing")
    monkeypatch.setattr(module, "EMBEDDED_PATH", copy)
    with pytest.raises(BaseModelError, match="model-00001-of-00003"):
        load_base(BaseConfig())


def test_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(BaseModelError) as error:
        load_base(BaseConfig(str(tmp_path)))
    assert "\n" not in str(error.value)


def test_linears_leave_out_the_head(tmp_path):
    base = tiny_base(tmp_path)
    assert len(base.linears()) == 2 * 7
    assert not any("lm_head" in name for name in base.linears())
