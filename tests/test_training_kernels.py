"""Fused operations with a backward pass against their plain twins: on a GPU, or by Triton's interpreter; and inside a model."""

import importlib.util
import os
import sys

import pytest
import torch
from models import tiny_base

from moe_router.experts.fused_layers import fusing
from moe_router.experts.recompute import recomputing
from moe_router.kernels import plain_training

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TRITON = importlib.util.find_spec("triton") is not None and (
    DEVICE.type == "cuda" or "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") == "1"
)


@pytest.fixture
def gpu_training():
    if not TRITON:
        pytest.skip("needs Triton, imported with its interpreter where there is no GPU")
    if DEVICE.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from moe_router.kernels import gpu_training

    return gpu_training


def outputs_and_gradients(function, tensors, *constants):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    found = function(*leaves, *constants)
    found = found if isinstance(found, tuple) else (found,)
    draw = torch.Generator().manual_seed(1)
    sum((y.float() * torch.randn(y.shape, generator=draw).to(DEVICE)).sum() for y in found).backward()
    return [*(y.detach() for y in found), *(leaf.grad for leaf in leaves)]


def draw(*shape, dtype, scale=1.0):
    return (torch.randn(shape, device=DEVICE) * scale).to(dtype)


def angles(dtype):
    half = torch.rand(2, 5, 16, device=DEVICE) * 6
    return [torch.cat([turn(half)] * 2, -1).to(dtype) for turn in (torch.cos, torch.sin)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "rope"])
def test_kernels_are_their_plain_twins(gpu_training, name, dtype):
    torch.manual_seed(0)
    tensors, constants = {
        "rms_norm": lambda: ([draw(2, 5, 96, dtype=dtype, scale=3)], [draw(96, dtype=dtype), 1e-5]),
        "swiglu": lambda: ([draw(2, 5, 700, dtype=dtype), draw(2, 5, 700, dtype=dtype)], []),
        "rope": lambda: ([draw(2, 5, 70, 32, dtype=dtype), draw(2, 5, 2, 32, dtype=dtype)], angles(dtype)),
    }[name]()
    found = outputs_and_gradients(getattr(gpu_training, name), tensors, *constants)
    expected = outputs_and_gradients(getattr(plain_training, name), tensors, *constants)
    limit = 1e-5 if dtype == torch.float32 else 3 * torch.finfo(dtype).eps
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=limit, atol=limit)


@pytest.mark.parametrize("recompute", [False, True])
def test_fused_layers_give_the_model_s_own_numbers_and_leave_it_as_it_was(tmp_path, recompute):
    base = tiny_base(tmp_path)
    tokens = torch.arange(20, 44, device=base.device).reshape(4, 6)

    def passed(ops):
        weight = base.model.model.embed_tokens.weight.requires_grad_()
        with fusing(base.model, ops), recomputing(base.model, recompute):
            logits = base.model(input_ids=tokens, use_cache=False).logits
            logits.square().mean().backward()
        gradient, weight.grad = weight.grad, None
        return logits.detach(), gradient

    before = {name: module.forward for name, module in base.model.named_modules()}
    expected = passed(None)
    calls = []

    class Counted:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(plain_training, name)

    for one, other in zip(passed(Counted()), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert {name: module.forward for name, module in base.model.named_modules()} == before
    assert set(calls) == {"rms_norm", "swiglu", "rope"}
