"""The memory benchmark at a size for the CPU, and the estimate against what it finds."""

import sys
from pathlib import Path

import pytest
import torch

from moe_router.memory import Shape

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import memory_gpu

SHAPE = Shape("test", width=512, layers=3, mlp_width=1376, vocabulary=1024)


@pytest.mark.parametrize("recipe", ["cpu", "consumer-12gb"])
def test_the_estimate_is_right_within_a_tenth(recipe):
    found = memory_gpu.measure(SHAPE, recipe, torch.device("cpu"))
    assert abs(found["error"]) < 0.1, found
    assert found["failed"] == []
    assert found["loss"] > 5


def test_random_weights_are_nf4_and_the_rest_in_the_compute_type():
    from moe_router.experts import bnb

    base = memory_gpu.random_base(SHAPE, torch.bfloat16, torch.device("cpu"))
    assert len(base.linears()) == 3 * 7
    assert all(bnb.is_4bit(linear) for linear in base.linears().values())
    assert base.model.lm_head.weight.dtype == torch.bfloat16
    assert abs(memory_gpu.tensors_bytes(base.model) / SHAPE.weight_bytes - 1) < 0.03
