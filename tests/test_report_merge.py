"""Merged experts against PEFT's own combination of the same adapters."""

import numpy as np
import pytest
import torch
from models import tiny_base
from report_place import make_place

from moe_router.experts.library import Library
from moe_router.experts.peft_format import LoraSettings, load_factors, save_adapter
from moe_router.progress import Silent
from moe_router.report.merge import METHODS, low_rank, merge_deltas, merge_library


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"), {"experts": {"epochs": 0.1}})


def test_ties_is_what_peft_makes_of_the_same_adapters(tmp_path):
    from peft import PeftModel

    base = tiny_base(tmp_path / "base")
    random = torch.Generator().manual_seed(0)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        sizes = {path: (m.in_features, m.out_features) for path, m in base.linears().items()}
        drawn = {p: [torch.randn(4, size, generator=random) / 10 for size in pair] for p, pair in sizes.items()}
        save_adapter(folder, {p: tuple(pair) for p, pair in drawn.items()}, LoraSettings(4, 8, False), base.id)
    factors = [load_factors(folder) for folder in folders]
    model = PeftModel.from_pretrained(base.model, folders[0], adapter_name="one")
    model.load_adapter(folders[1], adapter_name="two")
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "merged", "ties_svd", svd_rank=8, density=METHODS["ties"])
    for path in list(factors[0])[:4]:
        layer = model.base_model.model.get_submodule(path)
        theirs = layer.scaling["merged"] * layer.lora_B["merged"].weight @ layer.lora_A["merged"].weight
        a, b = low_rank(merge_deltas([2.0 * (f[path][1].T @ f[path][0]) for f in factors], "ties"), 8)
        assert torch.allclose(b.T @ a, theirs, atol=2e-3 * float(theirs.abs().max()) + 1e-4)


def test_dare_keeps_the_mean_of_the_experts():
    torch.manual_seed(0)
    deltas = [torch.ones(200, 200), 3 * torch.ones(200, 200)]
    merged = merge_deltas(deltas, "dare")
    assert float(merged.mean()) == pytest.approx(2, rel=0.02)
    assert float((merged == 0).float().mean()) == pytest.approx(0.25, abs=0.02)


def test_a_low_rank_product_is_found_whole():
    torch.manual_seed(0)
    delta = torch.randn(30, 4) @ torch.randn(4, 20)
    a, b = low_rank(delta, 6)
    assert (a.shape, b.shape) == ((6, 20), (6, 30))
    assert torch.allclose(b.T @ a, delta, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_library_opens_and_is_made_once(place, tmp_path, method):
    library = Library.load(place[0].experts)
    made = merge_library(tmp_path / method, library, method, 4, Silent(), seed=1)
    assert made.names == (method,) and made.has_shared
    again = merge_library(tmp_path / method, library, method, 4, Silent(), seed=1)
    assert again.digest == made.digest == Library.load(tmp_path / method).digest
    with made.open(place[2]) as model:
        assert model.layout.total == 2 + 4
        route = model.route(np.ones((1, 1), dtype=np.float32))
        with torch.no_grad(), model.routed(route):
            moved = place[2].model(input_ids=torch.tensor([[5, 6, 7]])).logits
        assert moved.isfinite().all()
    assert merge_library(tmp_path / method, library, method, 4, Silent(), seed=2).digest != made.digest
