import numpy as np
import pytest
import torch
from models import tiny_base

from moe_router.experts.adapters import SHARED, RankLayout, RoutedModel
from moe_router.experts.peft_format import LoraSettings, save_adapter

LAYOUT = RankLayout(("a", "b", "c"), (4, 2, 4), shared_rank=3)
SCALES = {"a": 2.0, "b": 1.0, "c": 0.5, SHARED: 1.5}
TOKENS = torch.arange(20, 44).reshape(4, 6)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base):
    with RoutedModel(base, LAYOUT, SCALES) as model:
        generator = torch.Generator().manual_seed(1)
        for layer in model.layers.values():
            for factor in (layer.A, layer.B):
                factor.data[:-1] = torch.randn(factor[:-1].shape, generator=generator) * 0.1
        yield model


def logits(model, weights, shared=None, form="auto"):
    with torch.no_grad(), model.routed(model.route(weights, shared, form)):
        return model.base.model(input_ids=TOKENS[: len(weights)]).logits


def one_hot(*rows):
    return np.eye(3, dtype=np.float32)[list(rows)]


def test_no_expert_is_exactly_the_base(base, model):
    nothing = np.zeros((4, 3))
    with torch.no_grad():
        plain = base.model(input_ids=TOKENS).logits
    assert torch.equal(logits(model, nothing, np.zeros(4)), plain)
    mixed = logits(model, one_hot(0, 1, 2, 0) * np.array([[1], [1], [1], [0]]), np.array([1, 1, 1, 0]))
    torch.testing.assert_close(mixed[3], plain[3], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mixed[0], plain[0], atol=1e-3)


@pytest.mark.parametrize("form", ["wide", "gathered"])
def test_each_row_has_its_own_mixture(model, form):
    weights = np.array([[1, 0, 0], [0, 0.25, 0.75], [0.2, 0.3, 0.5], [0, 0, 0]], dtype=np.float32)
    shared = np.array([1, 0, 1, 1])
    together = logits(model, weights, shared, form)
    for row in range(4):
        alone = reference(model, weights[row], shared[row])[row]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)


def reference(model, weights, shared):
    """Merge the mixture into the base's weights, run, and take it out again: an independent way to the same numbers."""
    parts = {"a": weights[0], "b": weights[1], "c": weights[2], SHARED: shared}
    for name, weight in parts.items():
        for path, (a, b) in model.factors(name).items():
            model.layers[path].base.weight.data += float(weight) * SCALES[name] * (b.T @ a)
    with torch.no_grad():
        found = model.base.model(input_ids=TOKENS).logits
    for name, weight in parts.items():
        for path, (a, b) in model.factors(name).items():
            model.layers[path].base.weight.data -= float(weight) * SCALES[name] * (b.T @ a)
    return found


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_one_hot_row_equals_peft(model, tmp_path, name):
    """The saved folder, loaded by PEFT itself into a fresh copy of the base, gives our logits."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rank = LAYOUT.ranks[LAYOUT.names.index(name)]
    save_adapter(tmp_path, model.factors(name), LoraSettings(rank, SCALES[name] * rank, False), model.base.id)
    fresh = AutoModelForCausalLM.from_pretrained(model.base.id, dtype=torch.float32)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(fresh, tmp_path).eval()(input_ids=TOKENS[:1]).logits
    ours = logits(model, one_hot(LAYOUT.names.index(name)), np.zeros(1))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4


@pytest.mark.parametrize("form", ["wide", "gathered"])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_nan_expert_leaves_other_rows_untouched(model, form, factor):
    weights = one_hot(0, 1, 2, 1)
    clean = logits(model, weights, form=form)
    for layer in model.layers.values():
        getattr(layer, factor).data[LAYOUT.slots["b"]] = torch.nan
    broken = logits(model, weights, form=form)
    assert torch.equal(broken[[0, 2]], clean[[0, 2]])
    assert broken[[1, 3]].isnan().all()


@pytest.mark.parametrize("form", ["wide", "gathered"])
def test_nan_expert_gives_others_their_own_gradients(model, form):
    def gradients(rows):
        for layer in model.layers.values():
            layer.A.grad = layer.B.grad = None
        with model.routed(model.route(one_hot(*rows), np.zeros(len(rows)), form)):
            model.base.model(input_ids=TOKENS[: len(rows)]).logits.square().mean((1, 2)).sum().backward()
        return {p: (layer.A.grad.clone(), layer.B.grad.clone()) for p, layer in model.layers.items()}

    alone = gradients([0, 2])
    for layer in model.layers.values():
        layer.A.data[LAYOUT.slots["b"]] = torch.nan
    with_broken = {}
    with model.routed(model.route(one_hot(0, 2, 1), np.zeros(3), form)):
        for layer in model.layers.values():
            layer.A.grad = layer.B.grad = None
        out = model.base.model(input_ids=TOKENS[[0, 1, 3]]).logits
        out.square().mean((1, 2)).sum().backward()
        with_broken = {p: (layer.A.grad, layer.B.grad) for p, layer in model.layers.items()}
    for path, pair in alone.items():
        for mine, theirs in zip(pair, with_broken[path], strict=True):
            for name in ("a", "c"):
                slots = LAYOUT.slots[name]
                torch.testing.assert_close(theirs[slots], mine[slots], rtol=1e-4, atol=1e-6)


def test_form_follows_the_share_of_slots_in_use(model):
    assert model.route(one_hot(0)).slots is not None
    assert model.route(np.ones((1, 3))).slots is None


def test_detach_gives_the_base_back(base):
    before = dict(base.linears())
    with RoutedModel(base, LAYOUT, SCALES):
        pass
    assert base.linears() == before
