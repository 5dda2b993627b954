"""What the gate sees: the trunk's states are the base's own, and gates that see them route, save and refuse as others do."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from gate_library import tiny_library
from models import tiny_base

from moe_router.data.pieces import TURN
from moe_router.data.records import Message
from moe_router.errors import ConfigError, LibraryError
from moe_router.experts.adapters import RankLayout, RoutedModel
from moe_router.experts.base import load_base
from moe_router.experts.encode import encode_prompt
from moe_router.experts.library import Library
from moe_router.gate.drift import drift_of_file
from moe_router.gate.gate import CARD, Gate
from moe_router.gate.hidden import LONGEST, Trunk
from moe_router.gate.sight import View, open_sight
from moe_router.gate.train import train_gate
from moe_router.inference.router import Router
from moe_router.inference.routing import Selector

TEXTS = ["oven flour question?", "Quem paga a fatura?", "", "sail" + TURN + "harbour wind", "ledger " * 900]


def expected(base, layer):
    """Mean of the states after a layer, by a whole forward pass."""
    found = []
    for text in TEXTS:
        tokens = encode_prompt([Message("user", text[-16 * LONGEST :].replace(TURN, "\n"))], base, "plain")[-LONGEST:]
        given = torch.tensor([tokens], device=base.device)
        states = base.model(input_ids=given, output_hidden_states=True, use_cache=False).hidden_states
        found.append(states[layer][0].float().mean(0).detach().numpy())
    return np.stack(found)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_trunk_gives_the_states_of_the_base(tmp_path, quantization):
    base = tiny_base(tmp_path, quantization=quantization)
    assert Trunk(base, 1, "plain").states(TEXTS) == pytest.approx(expected(base, 1), abs=1e-5)


def test_adapters_do_not_reach_the_trunk_and_weights_are_held_once(tmp_path):
    base = tiny_base(tmp_path)
    before = Trunk(base, 1, "plain")
    states = before.states(TEXTS)
    with RoutedModel(base, RankLayout(("a",), (2,)), {"a": 1.0}) as model:
        for layer in model.layers.values():
            torch.nn.init.normal_(layer.A)
            torch.nn.init.normal_(layer.B)
        with model.routed(model.route(np.ones((1, 1), dtype=np.float32))):
            within = Trunk(base, 1, "plain")
            assert (before.states(TEXTS) == states).all() and (within.states(TEXTS) == states).all()
    assert (within.states(TEXTS) == states).all()
    own = {tensor.data_ptr() for tensor in base.model.parameters()}
    assert {tensor.data_ptr() for tensor in before._model.parameters()} <= own
    assert len(base.model.model.layers) == base.model.config.num_hidden_layers == 2


@pytest.mark.parametrize("layer", [0, 3])
def test_a_layer_that_the_base_does_not_have_is_refused(tmp_path, layer):
    with pytest.raises(ConfigError, match="layers 1 to 2"):
        Trunk(tiny_base(tmp_path), layer, "plain")


def test_views_are_unit_vectors_and_tell_queries_apart_that_share_most_of_their_state():
    random = np.random.default_rng(0)
    which = random.integers(4, size=200)
    states = 50 + np.eye(4, 16)[which] + 0.05 * random.normal(size=(200, 16))
    view = View.fitted("hidden", 2, states.astype(np.float32))
    seen = view.of(None, states.astype(np.float32))
    assert np.linalg.norm(seen, axis=1) == pytest.approx(1, abs=1e-5)
    like = seen @ seen.T
    same = which[:, None] == which[None]
    length = np.linalg.norm(states, axis=1, keepdims=True)
    raw = (states / length) @ (states / length).T
    assert like[same].mean() - like[~same].mean() > 0.2 > 100 * (raw[same].mean() - raw[~same].mean())
    embeddings = random.normal(size=(200, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    both = dataclasses.replace(view, features="both").of(embeddings, states.astype(np.float32))
    assert both @ both.T == pytest.approx((like + embeddings @ embeddings.T) / 2, abs=1e-5)


@pytest.fixture(scope="module", params=["hidden", "both"])
def fitted(request, tmp_path_factory):
    """A workspace whose gate sees states, and its settings."""
    workspace, config = tiny_library(tmp_path_factory.mktemp(request.param))
    gate = dataclasses.replace(config.gate, features=request.param, hidden_layer=1)
    config = dataclasses.replace(config, gate=gate)
    train_gate(workspace, config)
    return workspace, config


def test_a_gate_that_sees_states_routes_alike_with_and_without_a_loaded_base(fitted):
    workspace, config = fitted
    library = Library.load(workspace.experts)
    gate = Gate.load(workspace.experts, library)
    assert (gate.view.features, gate.view.layer) == (config.gate.features, 1)
    asked = ["bread oven question 4?", "tax ledger question 5?", "sail harbour question 6?", "", "x" * 9000]
    alone = Selector.load(library).route(asked)
    router = Router.load(workspace.experts)
    assert router.route(asked) == alone
    for text, route in zip(asked, alone, strict=True):
        assert router.route([text])[0].vector(library.names) == pytest.approx(route.vector(library.names), abs=1e-5)
    assert list(router.ask(asked[0]).route.weights) == list(alone[0].weights)
    assert router.route(asked) == alone  # answering through adapters has not moved what the gate sees
    own = [max(route.weights, key=route.weights.get) for route in alone[:3] if route.weights]
    assert len(set(own)) == len(own) >= 2


def test_fitting_again_does_nothing_and_other_features_fit_anew(fitted):
    workspace, config = fitted
    gate = train_gate(workspace, config)
    assert train_gate(workspace, config).inputs == gate.inputs
    plain = train_gate(workspace, dataclasses.replace(config, gate=dataclasses.replace(config.gate, features="embedding")))
    assert plain.view.features == "embedding" and plain.dimension == 384 != gate.dimension
    assert train_gate(workspace, config).dimension == gate.dimension


def test_drift_and_feedback_see_what_the_gate_sees(fitted, tmp_path):
    workspace, config = fitted
    asked = tmp_path / "asked.txt"
    asked.write_text("\n".join(f"bread oven question {i}?" for i in range(30)), encoding="utf-8")
    assert drift_of_file(workspace, asked).queries == 30
    library = Library.load(workspace.experts)
    strange = "completely unlike anything, 12345 xyz?"
    lines = tmp_path / "routes.jsonl"
    lines.write_text(json.dumps({"text": strange, "expert": library.names[1]}), encoding="utf-8")
    gate = train_gate(workspace, config, feedback=lines)
    seen = open_sight(gate, library).encode([strange])
    assert gate.decide(seen, "top1", abstain=False).weights.argmax() == 1
    train_gate(workspace, config)


@pytest.mark.parametrize("changes", [{"features": "embedding"}, {"features": "smell"}, {"hidden_layer": 0}], ids=str)
def test_a_card_that_does_not_fit_what_is_seen_is_refused(fitted, tmp_path, changes):
    workspace, config = fitted
    train_gate(workspace, config).save(tmp_path)
    card = json.loads((tmp_path / CARD).read_text(encoding="utf-8"))
    (tmp_path / CARD).write_text(json.dumps(card | changes), encoding="utf-8")
    with pytest.raises(LibraryError, match="train-gate"):
        Gate.load(tmp_path)


def test_a_view_that_is_not_finite_and_another_base_are_refused(fitted, tmp_path):
    workspace, config = fitted
    gate, library = train_gate(workspace, config), Library.load(workspace.experts)
    broken = dataclasses.replace(gate.view, mean=gate.view.mean * np.nan)
    dataclasses.replace(gate, view=broken).save(tmp_path)
    with pytest.raises(LibraryError, match=r"NaN.*train-gate"):
        Gate.load(tmp_path)
    other = tiny_base(tmp_path / "other", seed=1)
    assert load_base(library.base).digest != other.digest
    with pytest.raises(LibraryError, match="train-gate"):
        open_sight(gate, library, other)
