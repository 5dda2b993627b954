"""Arrow through PEFT: the base is given back as it was, and one expert alone is that expert."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from report_place import make_place

from moe_router.data.embed import load_embedder
from moe_router.data.slices import Slices
from moe_router.experts.library import Library
from moe_router.experts.scoring import score_examples
from moe_router.progress import Silent
from moe_router.report.arrow import TEMPERATURES, measure_arrow, open_arrow
from moe_router.report.bench import Bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    workspace, config, base = make_place(tmp_path_factory.mktemp("place"))
    slices = Slices.load(workspace)
    return Bench.of(workspace, config, Library.load(workspace.experts), slices, base, load_embedder(slices.embedder))


def score(model, examples, weights=None):
    weights = np.zeros((len(examples), 0)) if weights is None else weights
    return score_examples(model, examples, weights).nats


def test_one_expert_under_arrow_is_that_expert_with_the_shared_one(bench):
    alone = replace(bench.library, names=bench.library.names[:1])
    examples = bench.examples[:6]
    with open_arrow(replace(bench, library=alone)) as model:
        theirs = score(model, examples)
    with bench.library.open(bench.base) as model:
        ours = score(model, examples, np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (6, 1)))
    assert theirs == pytest.approx(ours, rel=1e-4)


def test_the_arm_is_measured_and_the_base_left_as_it_was(bench):
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = bench.base.model(input_ids=tokens).logits
        found = measure_arrow("arrow", bench, Silent())
        assert torch.equal(bench.base.model(input_ids=tokens).logits, before)
    assert found.arm.perplexity > 1 and len(found.nats) == len(bench.examples)
    assert found.arm.flops_per_token >= found.arm.active_flops_per_token
    assert not (bench.workspace.arms / "arrow").exists()


def test_the_temperature_reaches_every_layer(bench):
    with open_arrow(bench) as model:
        assert len(model.layers) == len(bench.adapted)
        cold, hot = ([model.warm(t), score(model, bench.examples[:4])][1] for t in (TEMPERATURES[0], 100.0))
    assert not np.allclose(cold, hot, atol=1e-6)
