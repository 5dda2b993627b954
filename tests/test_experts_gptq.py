"""A tiny GPTQ checkpoint, quantised here with GPTQModel, as a base: needs the extra `gptq`, which most machines lack."""

import contextlib
import os
import shutil

import numpy as np
import pytest
import torch
from models import tiny_llama
from torch import nn

from moe_router.config import BaseConfig, Config
from moe_router.data.records import Record
from moe_router.errors import BaseModelError
from moe_router.experts import gptq
from moe_router.experts.adapters import RankLayout, RoutedModel
from moe_router.experts.base import EMBEDDED_PATH, load_base
from moe_router.experts.export import export_adapter, export_merged
from moe_router.experts.full import full_finetune
from moe_router.experts.peft_format import LoraSettings, peft_logits
from moe_router.experts.schedule import Job, Schedule
from moe_router.experts.train import Plan, Split, train_library

needs_gptq = pytest.mark.skipif(not gptq.installed(), reason="needs moe-router[gptq]")
TOKENS = torch.arange(30, 60)[None]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def checkpoint(plain, tmp_path_factory):
    """A two-layer Llama in 4 bits, groups of 32."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # GPTQModel 7.6 fails on two cores otherwise
    from gptqmodel import GPTQModel, QuantizeConfig

    folder, draw = tmp_path_factory.mktemp("gptq"), np.random.default_rng(0)
    rows = [{"input_ids": draw.integers(5, 9000, 64).tolist(), "attention_mask": [1] * 64} for _ in range(4)]
    with gptq.quiet(), contextlib.chdir(folder.parent):  # it writes logs where it is
        model = GPTQModel.load(str(plain), QuantizeConfig(bits=4, group_size=32), device="cpu")
        model.quantize(rows, batch_size=1)
        model.save(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EMBEDDED_PATH / name, folder / name)
    return folder


@pytest.fixture
def packed(checkpoint, monkeypatch):
    """The base with its weights in 4 bits."""
    monkeypatch.setattr("moe_router.experts.base.RESIDENT_BYTES", 0)
    return load_base(BaseConfig(str(checkpoint), "gptq", "float32"))


def attached(base):
    """Two experts with factors drawn from a seed."""
    model = RoutedModel(base, RankLayout(("one", "two"), (3, 3)), {"one": 1.0, "two": 1.0})
    draw = torch.Generator().manual_seed(0)
    for layer in model.layers.values():
        for factor in (layer.A, layer.B):
            factor.data[:-1].normal_(0, 0.1, generator=draw)
    return model


def loss_of(model, embeddings):
    with model.routed(model.route(np.array([[0.3, 0.7]]))):
        return model.base.model(inputs_embeds=embeddings).logits.log_softmax(-1)[..., 7].sum()


@needs_gptq
def test_its_layers_are_found_and_give_gptqmodels_own_outputs(packed, plain):
    linears, exact = packed.linears(), load_base(BaseConfig(str(plain), "none", "float32")).linears()
    assert linears.keys() == exact.keys() and not packed.resident
    for path, layer in linears.items():
        assert isinstance(layer, gptq.GptqLinear) and layer.weight.dtype == torch.int32
        error = layer.dense(torch.float32) - exact[path].weight
        assert 0.01 < float(error.norm() / exact[path].weight.norm()) < 0.2  # 4 bits of it
        vars(layer.packed).pop("dequantize_weight")  # its compiled one
        x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(layer(x), layer.packed(x))


@needs_gptq
def test_gradients_are_those_of_the_dense_weights_and_of_finite_differences(packed, checkpoint, monkeypatch):
    monkeypatch.undo()
    resident = load_base(BaseConfig(str(checkpoint), "gptq", "float32"))
    assert resident.resident and all(type(layer) is nn.Linear for layer in resident.linears().values())
    assert resident.digest == packed.digest
    start = packed.model.get_input_embeddings()(TOKENS).detach()
    found = []
    for base in (packed, resident):
        with attached(base) as model:
            embeddings = start.clone().requires_grad_()
            loss = loss_of(model, embeddings)
            loss.backward()
            factors = [factor.grad.flatten() for layer in model.layers.values() for factor in (layer.A, layer.B)]
            found.append((loss.detach(), torch.cat([embeddings.grad.flatten(), *factors])))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    gradient = found[0][1]
    direction = torch.sign(gradient)
    step = 1e-3 / gradient.numel() ** 0.5
    with torch.no_grad(), attached(packed) as model:
        losses = []
        for sign in (1, -1):
            moved, at = start + sign * step * direction[: start.numel()].view_as(start), start.numel()
            for layer in model.layers.values():
                for factor in (layer.A, layer.B):
                    factor.data += (sign if sign > 0 else 2 * sign) * step * direction[at : at + factor.numel()].view_as(factor)
                    at += factor.numel()
            losses.append(float(loss_of(model, moved)))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(gradient.abs().sum()), rel=0.02)


@needs_gptq
def test_it_trains_saves_loads_generates_and_agrees_with_peft(packed, checkpoint, tmp_path):
    records = [Record(f"r{i}", f"question {i % 5} of {'bread' if i % 2 else 'boats'}?", f"answer {i % 3}") for i in range(24)]
    split = Split(records, np.arange(24) % 2, np.zeros((24, 2), np.float32))
    experts = {"rank": 4, "shared_rank": 4, "steps": 6, "search_rates": False, "learning_rate": 1e-2}
    base = {"model": str(checkpoint), "quantization": "gptq", "dtype": "float32"}
    plan = Plan(("boats", "bread"), split, split, Config().override({"base": base, "experts": experts}), "data")
    library = train_library(tmp_path / "library", plan, tmp_path / "run.safetensors", base=packed)
    losses = library.cards["shared"]["losses"]
    assert losses[-1] < losses[0] - 0.5
    again = load_base(library.base)
    with torch.no_grad(), library.open(again) as model, model.routed(model.route(np.array([[0.3, 0.7]]))):
        mixed = again.model(input_ids=TOKENS).logits
        made = again.model.generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert made.shape[1] > TOKENS.shape[1]
    weights = {"boats": 0.3, "bread": 0.7}
    export_adapter(library, weights, tmp_path / "adapter")
    theirs = peft_logits(load_base(library.base).model, tmp_path / "adapter", TOKENS)
    assert float((theirs - mixed).abs().max() / mixed.abs().max()) < 1e-3
    export_merged(library, weights, tmp_path / "merged", load_base(library.base))
    merged = load_base(BaseConfig(str(tmp_path / "merged"), "none", "float32"))
    with torch.no_grad():
        assert float((merged.model(input_ids=TOKENS).logits - mixed).abs().max() / mixed.abs().max()) < 1e-3


@needs_gptq
def test_its_weights_cannot_be_trained(packed, tmp_path):
    job = Job("all", [], LoraSettings(2, 2.0, False), 1e-3)
    with pytest.raises(BaseModelError, match="quantised"):
        full_finetune(packed, job, Schedule(), tmp_path / "full")


@pytest.mark.parametrize(
    ("declared", "quantization", "words"),
    [({"quant_method": "gptq", "bits": 4}, "nf4", "set base.quantization = 'gptq'"), (None, "gptq", "is no GPTQ checkpoint")],
)
def test_a_base_quantised_otherwise_than_said_is_refused(tmp_path, declared, quantization, words):
    import json

    folder = tiny_llama(tmp_path)
    if declared:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": declared}))
    with pytest.raises(BaseModelError, match=words):
        load_base(BaseConfig(str(folder), quantization, "float32"))


@pytest.mark.skipif(gptq.installed(), reason="needs the extra to be missing")
def test_without_the_extra_the_error_says_what_to_install(tmp_path):
    import json

    folder = tiny_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    declared = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config | declared))
    with pytest.raises(BaseModelError, match=r"pip install 'moe-router\[gptq\]'"):
        load_base(BaseConfig(str(folder), "gptq", "float32"))
