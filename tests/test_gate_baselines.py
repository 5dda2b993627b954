"""Published gates that work inside the model: Arrow's routes of tokens, and a gate trained through the frozen mixture."""

import numpy as np
import pytest
import torch
from gate_library import tiny_library

from moe_router.data.slices import Slices
from moe_router.experts.base import load_base
from moe_router.experts.encode import encode
from moe_router.experts.library import Library
from moe_router.experts.scoring import score_examples, score_routed
from moe_router.experts.train import Split
from moe_router.gate.baselines.arrow import TOP, arrow, prototypes
from moe_router.gate.baselines.end_to_end import end_to_end, mixture_nats


@pytest.fixture(scope="module", params=["shared", "isolated"])
def place(request, tmp_path_factory):
    workspace, _ = tiny_library(tmp_path_factory.mktemp(request.param), request.param)
    library = Library.load(workspace.experts)
    base = load_base(library.base)
    known = Split.of(workspace, Slices.load(workspace), "gate")
    return library, base, encode(known.records, base, library.template), known.embeddings


def test_an_arrow_prototype_is_the_direction_that_an_expert_moves_most(place):
    library, base, *_ = place
    with library.open(base) as model:
        found = prototypes(model, library.names)
        path, (a, b) = next(iter(model.factors(library.names[0]).items()))
        update = (b.T @ a).detach()  # (outputs, inputs)
        direction = found[path][0]
        largest = torch.linalg.matrix_norm(update, 2)
    assert torch.linalg.norm(direction) == pytest.approx(1, abs=1e-4)
    assert torch.linalg.norm(update @ direction) == pytest.approx(float(largest), rel=1e-3)


def test_every_token_gets_the_experts_it_is_most_parallel_to(place):
    library, base, *_ = place
    with library.open(base) as model:
        layer = next(iter(model.layers.values()))
        found = arrow(model, library.names, 0.3)
        x = torch.randn(2, 5, layer.A.shape[1])
        gates = (found.gates(layer, x) / found.scale).detach()
        shared, weights = gates[..., : model.shared_rank], gates[..., model.shared_rank :: 2]  # two slots an expert
        assert (shared == 1).all()
        assert (weights > 0).sum(-1).eq(TOP).all() and torch.allclose(weights.sum(-1), torch.ones(2, 5))
        assert (weights.argmax(-1) == (x @ found.prototypes[layer.index].T).abs().argmax(-1)).all()


def test_arrow_is_peft_s_own_where_there_is_no_shared_expert(place):
    from peft import ArrowConfig, create_arrow_model

    library, base, examples, _ = place
    if library.has_shared:
        pytest.skip("PEFT knows no shared expert")
    with library.open(base) as model:
        route = arrow(model, library.names, 0.3)
        ours = score_routed(model, examples, lambda _: route).nats
        alone = score_examples(model, examples, np.eye(3)[np.zeros(len(examples), int)]).nats
    config = ArrowConfig(top_k=TOP, router_temperature=0.3, rng_seed=0)
    other = create_arrow_model(base.model, [str(library.path / name) for name in library.names], config).eval()
    try:
        nats = []
        for example in examples:
            logits = other(torch.tensor([example.tokens])).logits[0].log_softmax(-1)
            at = torch.arange(example.prompt_tokens - 1, len(example.tokens) - 1)
            nats.append(-logits[at, list(example.tokens[example.prompt_tokens :])].sum().item())
    finally:
        other.unload()
    assert ours == pytest.approx(nats, rel=2e-3)
    assert not np.allclose(ours, alone, rtol=1e-4)


def test_the_loss_of_the_mixture_and_its_gradient(place):
    library, base, examples, _ = place
    few = examples[:5]
    mixture = torch.softmax(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), 1).requires_grad_()
    with library.open(base) as model:
        loss = mixture_nats(model, few, mixture)
        expected = score_examples(model, few, mixture.detach().numpy())
        assert loss.item() == pytest.approx(expected.nats.sum(), rel=1e-5)
        (found,) = torch.autograd.grad(loss, [mixture])
        step = torch.zeros_like(mixture)
        step[2, 1] = 0.05
        up, down = (mixture_nats(model, few, mixture.detach() + sign * step) for sign in (1, -1))
        assert float(found[2, 1]) == pytest.approx((up - down).item() / 0.1, rel=0.02, abs=1e-3)


def test_training_through_the_mixture_lowers_its_loss_and_touches_no_expert(place):
    library, base, examples, x = place
    start = np.zeros((3, x.shape[1]), np.float32), np.zeros(3, np.float32)
    seen = []
    with library.open(base) as model:
        before = [layer.A.detach().clone() for layer in model.layers.values()]

        def judge(gate):
            weights = torch.softmax(torch.from_numpy(x @ gate[0].T + gate[1]), 1).numpy()
            seen.append(float(score_examples(model, examples, weights).nats.sum()))
            return seen[-1]

        weight, bias = end_to_end(model, examples, x, start, judge)
        assert all(torch.equal(a, layer.A) for a, layer in zip(before, model.layers.values(), strict=True))
        assert not any(layer.A.grad is not None for layer in model.layers.values())
        assert judge((weight, bias)) == pytest.approx(min(seen)) and min(seen) < seen[0]
        again = end_to_end(model, examples, x, start, judge)
    assert (again[0] == weight).all()


def test_a_gate_that_training_makes_worse_is_not_taken(place):
    library, base, examples, x = place
    start = np.zeros((3, x.shape[1]), np.float32), np.zeros(3, np.float32)
    with library.open(base) as model:
        weight, _ = end_to_end(model, examples, x, start, lambda gate: float(np.abs(gate[0]).sum()))
    assert (weight == 0).all()
