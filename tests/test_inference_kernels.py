"""The Triton kernels against their plain twins: on a GPU, or by Triton's interpreter where there is none."""

import importlib.util
import os
import sys

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)
if DEVICE.type == "cpu":
    if "triton" in sys.modules and not os.environ.get("TRITON_INTERPRET"):
        pytest.skip("Triton was imported without its interpreter: run this file alone", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"

from models import tiny_base  # noqa: E402 - after the environment is set

from moe_router import kernels  # noqa: E402 - after the environment is set
from moe_router.experts.adapters import RankLayout, RoutedModel  # noqa: E402
from moe_router.inference.cache import CacheShape, SlotCache  # noqa: E402
from moe_router.inference.forward import EagerForward  # noqa: E402
from moe_router.inference.fused import fuse, unfuse  # noqa: E402
from moe_router.inference.mixing import Groups, plan  # noqa: E402
from moe_router.inference.requests import GRAIN  # noqa: E402
from moe_router.kernels import gpu, of, plain  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    torch.manual_seed(0)
    return request.param


def draw(*shape, dtype):
    return torch.randn(shape, device=DEVICE).to(dtype)


def for_dot(dtype, seq=2):
    """Triton's interpreter multiplies the bits of bfloat16 matrices and rounds towards zero: it gets half precision instead."""
    return torch.float16 if dtype == torch.bfloat16 and seq > 1 and DEVICE.type == "cpu" else dtype


def close(found, expected, rounds=2):
    error = 1e-5 if found.dtype == torch.float32 else rounds * torch.finfo(found.dtype).eps
    torch.testing.assert_close(found, expected, rtol=error, atol=error)


@pytest.mark.parametrize(
    ("rows", "seq", "members", "d_in"), [(1, 1, 3, 96), (11, 1, 2, 2080), (3, 1, 1, 64), (2, 40, 3, 160), (1, 5, 1, 64)]
)
def test_shrink(dtype, rows, seq, members, d_in):
    dtype = for_dot(dtype, seq)
    slots, gates = choice(rows, dtype)
    x, factors = draw(rows, seq, d_in, dtype=dtype), draw(members * 24, d_in, dtype=dtype) / d_in**0.5
    close(gpu.shrink(x, factors, slots, gates, members), plain.shrink(x, factors, slots, gates, members))


def choice(rows, dtype, count=8):
    """Slots below the null slot 20 and their gates, in which a quarter of the places is unused."""
    slots = torch.stack([torch.randperm(20)[:count] for _ in range(rows)]).to(DEVICE)
    gates = draw(rows, count, dtype=dtype)
    slots[:, -2:], gates[:, -2:] = 23, 0
    return slots, gates


@pytest.mark.parametrize("seq", [1, 3])
def test_shrink_reads_nothing_of_what_a_gate_of_zero_selects(dtype, seq):
    dtype = for_dot(dtype, seq)
    slots, gates = choice(3, dtype)
    factors = draw(24, 64, dtype=dtype)
    factors[23] = torch.nan
    assert gpu.shrink(draw(3, seq, 64, dtype=dtype), factors, slots, gates, 1).isfinite().all()


@pytest.mark.parametrize(("rows", "seq", "sizes"), [(1, 1, [600, 40]), (11, 1, [96, 32, 260]), (2, 70, [96]), (1, 5, [9] * 4)])
def test_expand(dtype, rows, seq, sizes):
    dtype = for_dot(dtype, seq)
    slots, _ = choice(rows, dtype)
    hidden = draw(rows, seq, len(sizes), 8, dtype=dtype)
    factors = [draw(24, size, dtype=dtype) / 3 for size in sizes]
    for factor in factors:
        factor[23] = 0
    found = [draw(rows, seq, size, dtype=dtype) for size in sizes]
    expected = [y.clone() for y in found]
    gpu.expand(found, hidden, factors, slots)
    plain.expand(expected, hidden, factors, slots)
    for one, other in zip(found, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize(("rows", "seq", "sizes"), [(1, 1, [96]), (20, 1, [130, 40]), (3, 5, [96, 32, 70, 16]), (70, 1, [40])])
def test_all_slots_of_all_rows(dtype, rows, seq, sizes):
    dtype = for_dot(dtype)
    gates = draw(rows, 40, dtype=dtype) * (torch.rand(rows, 40, device=DEVICE) < 0.5)
    x, factors = draw(rows, seq, 160, dtype=dtype), draw(len(sizes) * 40, 160, dtype=dtype) / 13
    hidden = gpu.shrink_all(x, factors, gates, len(sizes))
    close(hidden, plain.shrink_all(x, factors, gates, len(sizes)))
    ups = [draw(40, size, dtype=dtype) / 6 for size in sizes]
    found = [draw(rows, seq, size, dtype=dtype) for size in sizes]
    expected = [y.clone() for y in found]
    gpu.expand_all(found, hidden, ups)
    plain.expand_all(expected, hidden, ups)
    for one, other in zip(found, expected, strict=True):
        close(one, other)


def test_one_member_of_several_may_be_expanded_alone(dtype):
    dtype = for_dot(dtype)
    slots, _ = choice(3, dtype)
    hidden, factor, y = draw(3, 1, 2, 8, dtype=dtype), draw(24, 40, dtype=dtype), draw(3, 1, 40, dtype=dtype)
    factor[23] = 0
    found, expected = y.clone(), y.clone()
    gpu.expand([found], hidden[:, :, 1:], [factor], slots)
    plain.expand([expected], hidden[:, :, 1:], [factor], slots)
    close(found, expected, 4)
    found, expected = y.clone(), y.clone()
    gpu.expand_all([found], hidden[:, :, 1:], [factor[:8]])
    plain.expand_all([expected], hidden[:, :, 1:], [factor[:8]])
    close(found, expected, 4)


@pytest.mark.parametrize("seq", [1, 3])
def test_expand_shows_a_broken_expert_in_the_rows_that_chose_it(dtype, seq):
    dtype = for_dot(dtype, seq)
    slots = torch.tensor([[0, 1], [2, 23]], device=DEVICE)
    factors = draw(24, 40, dtype=dtype)
    factors[2] = torch.nan
    y = draw(2, seq, 40, dtype=dtype)
    gpu.expand([y], draw(2, seq, 1, 2, dtype=dtype), [factors], slots)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


def test_rms_norm(dtype):
    x, weight = draw(2, 3, 200, dtype=dtype), draw(200, dtype=dtype)
    close(gpu.rms_norm(x, weight, 1e-6), plain.rms_norm(x, weight, 1e-6))


def test_swiglu(dtype):
    gate, up = draw(2, 3, 700, dtype=dtype), draw(2, 3, 700, dtype=dtype)
    close(gpu.swiglu(gate, up), plain.swiglu(gate, up))


def test_rope_store_keeps_keys_and_values_where_told_and_nothing_elsewhere(dtype):
    rows, seq, heads, kv_heads, size = 2, 3, 4, 2, 16
    q, k, v = (draw(rows, seq, h, size, dtype=dtype) for h in (heads, kv_heads, kv_heads))
    angles = torch.rand(rows, seq, size, device=DEVICE) * 6
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    positions = torch.tensor([[4, 5, 6], [0, 1, 7]], device=DEVICE)
    both = []
    for made in (gpu, plain):
        kept = torch.zeros(2, 5, kv_heads, 8, size, device=DEVICE, dtype=dtype)
        keys, values = kept[:, 2:4]
        both.append((made.rope_store(q, k, v, cos, sin, keys, values, positions), kept))
    for found, expected in zip(*both, strict=True):
        close(found, expected)
    assert (kept.abs().sum((0, 2, 3, 4)) > 0).tolist() == [False, False, True, True, False]
    assert (kept[0, 2, 0].abs().sum(-1) > 0).tolist() == [False] * 4 + [True] * 3 + [False]


@pytest.mark.parametrize("form", ["wide", "gathered"])
def test_a_model_with_fused_kernels_gives_the_same_logits(tmp_path, form):
    """Prompts and steps, with and without adapters, by the whole forward pass."""
    mixtures = [(GRAIN, 0), (0, 0), (GRAIN // 2, 0)]
    prompts = [list(range(9, 21)), [4, 5], list(range(30, 50))]
    found = []
    with torch.inference_mode():
        for made in (plain, gpu):
            base = tiny_base(tmp_path)
            model = RoutedModel(base, RankLayout(("a",), (4,)), {"a": 1.0})
            torch.manual_seed(1)
            for layer in model.layers.values():
                for factor in (layer.A, layer.B):
                    factor.data[:-1] = torch.randn(factor[:-1].shape) * 0.1
            cache = SlotCache(CacheShape.of(base), 4, 64, base.device)
            forward = EagerForward(model, cache, form, made)
            read = forward(prompts, [0] * 3, 1, mixtures)
            step = forward([[7]] * 3, [len(p) for p in prompts], 1, mixtures)
            found.append((read, step, cache.kv[:, :, :, :, :64]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_fused_layers_train_as_before(tmp_path):
    base = tiny_base(tmp_path)
    tokens = torch.arange(5, device=base.device)[None]
    before = base.model(input_ids=tokens).logits
    groups = Groups(RoutedModel(base, RankLayout(("a",), (4,)), {"a": 1.0}), gpu)
    assert fuse(base.model, groups) == fuse(base.model, groups) == 2 * 4 + 1
    assert torch.equal(base.model(input_ids=tokens).logits, before)
    with torch.no_grad():
        torch.testing.assert_close(base.model(input_ids=tokens).logits, before, rtol=1e-4, atol=1e-4)
    unfuse(base.model)
    assert not any("forward" in vars(module) for module in base.model.modules())


def test_rows_that_share_slots_are_wide_at_a_fused_step(tmp_path):
    model = RoutedModel(tiny_base(tmp_path), RankLayout(("a", "b"), (8, 8)), {"a": 1.0, "b": 1.0})
    groups = Groups(model, gpu)
    forms = {rows: plan(groups, [(GRAIN, 0, 0)] * rows).key[0] for rows in (1, 3, 4)}
    assert forms == {1: "gathered", 3: "gathered", 4: "wide"}
    assert plan(groups, [(GRAIN, 0, 0)] * 4, decode=False).key[0] == "gathered"


def test_the_cpu_gets_the_plain_twins():
    assert of(torch.device("cpu")) is plain


def test_where_triton_does_not_work_the_plain_twins_serve(monkeypatch):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler.")

    kernels._tried.cache_clear()
    assert kernels._tried(DEVICE) is gpu
    kernels._tried.cache_clear()
    monkeypatch.setattr(gpu, "swiglu", fail)
    assert kernels._tried(DEVICE) is plain
    kernels._tried.cache_clear()
