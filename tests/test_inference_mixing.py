"""The engine's ways to add adapters against the adapter layer's own."""

import numpy as np
import pytest
import torch
from models import tiny_base

from moe_router.experts.adapters import SHARED, RankLayout, RoutedModel
from moe_router.experts.together import siblings
from moe_router.inference import rows
from moe_router.inference.mixing import Groups, Mix, plan
from moe_router.inference.requests import GRAIN
from moe_router.inference.rows import RowTable

LAYOUT = RankLayout(("a", "b", "c"), (4, 2, 4), shared_rank=3)
SCALES = {"a": 2.0, "b": 1.0, "c": 0.5, SHARED: 1.5}
TOKENS = torch.arange(20, 44).reshape(4, 6)
MIXTURES = [(GRAIN, 0, 0, 1), (0, GRAIN // 4, 3 * GRAIN // 4, 0), (200, 300, 524, 1), (0, 0, 0, 0)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = RoutedModel(tiny_base(tmp_path_factory.mktemp("base")), LAYOUT, SCALES)
    generator = torch.Generator().manual_seed(1)
    for layer in made.layers.values():
        for factor in (layer.A, layer.B):
            factor.data[:-1] = torch.randn(factor[:-1].shape, generator=generator) * 0.1
    return made


@pytest.fixture(scope="module")
def groups(model):
    return Groups(model)


@pytest.fixture
def broken(groups):
    """Expert b is not finite."""
    layers = groups.model.layers.values()
    kept = [layer.A.data.clone() for layer in layers]
    for layer in layers:
        layer.A.data[LAYOUT.slots["b"]] = torch.nan
    groups.refresh()
    yield groups
    for layer, factor in zip(layers, kept, strict=True):
        layer.A.data.copy_(factor)
    groups.refresh()


def logits(model, route, rows=4):
    with torch.inference_mode(), model.routed(route):
        return model.base.model(input_ids=TOKENS[:rows]).logits


def reference(model, mixtures):
    """By the route that training and scoring use."""
    weights = np.array([mixture[:-1] for mixture in mixtures]) / GRAIN
    return logits(model, model.route(weights, np.array([mixture[-1] for mixture in mixtures])), len(mixtures))


@pytest.mark.parametrize("form", ["wide", "gathered"])
def test_every_form_equals_the_adapter_layer(model, groups, form):
    found = logits(model, Mix(groups, plan(groups, MIXTURES, form), 4))
    torch.testing.assert_close(found, reference(model, MIXTURES), rtol=1e-5, atol=2e-5)


def test_no_adapter_is_no_plan_and_a_row_without_one_is_the_base(model, groups):
    assert plan(groups, [MIXTURES[3]]) is None
    plain = logits(model, None)
    for form in ("wide", "gathered"):
        assert torch.equal(logits(model, Mix(groups, plan(groups, MIXTURES, form), 4))[3], plain[3])


@pytest.mark.parametrize("form", ["wide", "gathered"])
def test_loading_another_plan_leaves_nothing_of_the_first(model, groups, form):
    mix = Mix(groups, plan(groups, MIXTURES, form), 4)
    mix.load(plan(groups, MIXTURES[2::-1], form))
    expected = torch.cat([reference(model, MIXTURES[2::-1]), logits(model, None)[3:]])
    torch.testing.assert_close(logits(model, mix), expected, rtol=1e-5, atol=2e-5)


def test_a_broken_expert_is_gathered_and_leaves_other_rows_alone(model, groups, broken):
    mixed = plan(groups, MIXTURES, "wide")
    assert mixed.key == ("gathered", 16)
    found = logits(model, Mix(groups, mixed, 4))
    assert found[[0, 3]].isfinite().all()
    assert found[[1, 2]].isnan().all()


def test_only_a_row_that_needs_every_slot_is_wide(groups):
    assert plan(groups, [MIXTURES[0]]).key == ("gathered", 8)
    assert plan(groups, [MIXTURES[2]]).key == ("wide", LAYOUT.total)


def test_rows_keep_their_factors_until_their_mixture_changes(model, groups):
    table = RowTable(groups, 6)

    def check(mixtures, first):
        found = logits(model, table.mix(mixtures, first, plan(groups, mixtures, "gathered")), len(mixtures))
        torch.testing.assert_close(found, reference(model, mixtures), rtol=1e-5, atol=2e-5)

    check(MIXTURES[:1], 1)
    check(MIXTURES[1:3], 2)
    check([MIXTURES[0], MIXTURES[2], MIXTURES[1]], 1)
    check(MIXTURES, 0)
    again = plan(groups, MIXTURES, "gathered")
    assert table.mix(MIXTURES, 0, again) is table.mix(MIXTURES, 0, again)


def test_a_table_that_would_not_fit_is_not_made(groups, monkeypatch):
    monkeypatch.setattr(rows, "LIMIT", 1000)
    assert RowTable(groups, 6).mix(MIXTURES, 0, plan(groups, MIXTURES, "gathered")) is None


def test_layers_that_read_the_same_input_are_found_by_name():
    attention, mlp = "layers.0.attn", "layers.0.mlp"
    paths = [f"{attention}.{n}_proj" for n in "qkvo"] + [f"{mlp}.{n}_proj" for n in ("gate", "up", "down")]
    found = list(siblings([*paths, "other.q_proj"]))
    assert [len(group) for group in found] == [3, 1, 2, 1, 1]
    assert [path for group in found for path in group] == [*paths, "other.q_proj"]


def test_factors_stay_views_that_training_may_write_to(model, groups):
    for layer in model.layers.values():
        group, member = groups.of(layer)
        assert layer.A.data_ptr() == group.A[member * group.slots].data_ptr()
        assert layer.A.shape[0] == LAYOUT.total + 1
        assert not layer.A.is_inference()
