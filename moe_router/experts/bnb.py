"""All contact with bitsandbytes: 4-bit loading, the CPU trap, and dequantised copies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from moe_router.experts.dense import unpack_layers


def nf4_config(dtype: torch.dtype) -> Any:
    """NF4 with double quantisation (Dettmers et al. 2023), computing in `dtype`."""
    from transformers import BitsAndBytesConfig

    prepare_loading()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def prepare_loading() -> None:
    """What every load in 4 bits needs first, also one of a form that is in 4 bits already.

    Makes Falcon's layers plain linear ones, which they are but for their class: transformers (5.17 to 5.23) quantises only
    modules of the very class nn.Linear, so that Falcon would silently stay in 16 bits, and its 4-bit form not load at all.
    """
    from transformers.models.falcon import modeling_falcon

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it misses a kernel that is not used here
    modeling_falcon.FalconLinear = nn.Linear


def is_4bit(module: nn.Module) -> bool:
    """Whether the module is a bitsandbytes 4-bit linear layer (without importing bitsandbytes when none is loaded)."""
    return type(module).__name__ in ("Linear4bit", "LinearNF4", "LinearFP4")


def unquantised_share(model: nn.Module) -> float:
    """Share of a model's parameters that are not held in 4 bits: embeddings, norms, and a MoE base's own experts."""
    packed = {id(module.weight): module.in_features * module.out_features for module in model.modules() if is_4bit(module)}
    plain = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in packed)
    return plain / (plain + sum(packed.values()))


def keep_differentiable(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-bf16.

    One forward in eval mode would move them for good into a kernel without autograd: later gradients are silently
    zero and logits move.
    """
    for module in model.modules():
        if is_4bit(module):
            module.support_avx512bf16_for_cpu = False


def dense_weight(module: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """A linear layer's weight in `dtype`: dequantised for this call where it is held in 4 bits. *Shape:* → (d_out, d_in)."""
    if not is_4bit(module):
        return module.weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(module.weight.data, module.weight.quant_state).to(dtype)


def make_resident(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every 4-bit layer by a plain one holding the same numbers in `dtype`.

    The weights are the dequantised NF4 values, so experts trained on either form fit the other; only the work of
    dequantising in every pass is saved.
    """
    unpack_layers(model, lambda module: dense_weight(module, dtype) if is_4bit(module) else None, dtype)


def forget_quantisation(model: nn.Module) -> None:
    """Let transformers save a model whose 4-bit layers were all unpacked as an ordinary one."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    model.is_loaded_in_4bit = False
    # read from an NF4 form, the model would want to pack its weights again
    unpacked = [c for c in getattr(model, "_weight_conversions", None) or () if not _packs(c)]
    model._weight_conversions = unpacked if unpacked else None


def _packs(conversion: Any) -> bool:
    return any(type(operation).__name__.startswith("Bnb4bit") for operation in getattr(conversion, "operations", ()))


def paged_adamw(parameters: Sequence[nn.Parameter], bits: int, **settings: Any) -> torch.optim.Optimizer:
    """AdamW with 32-bit or block-wise 8-bit moments (Dettmers et al. 2022), paged out to main memory under pressure.

    bitsandbytes pages, and quantises to 8 bits, tensor by tensor: moments of fewer than 100,000 numbers are not paged, and
    of fewer than 4,096 stay 32-bit.
    """
    from bitsandbytes.optim import PagedAdamW8bit, PagedAdamW32bit

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says that CPUs have no paged memory
    return (PagedAdamW32bit if bits == 32 else PagedAdamW8bit)(parameters, **settings)


def prepare_state(optimiser: torch.optim.Optimizer, parameter: nn.Parameter, index: int) -> None:
    """Allocate a bitsandbytes optimiser's moments of its parameter number `index`, as its first step would."""
    if not optimiser.initialized:
        optimiser.check_overrides()
        optimiser.to_gpu()
        optimiser.initialized = True
    optimiser.init_state(optimiser.param_groups[0], parameter, 0, index)
    if parameter.is_cuda:  # paged memory is zeroed by the GPU, and must not be after the CPU has filled it
        torch.cuda.synchronize(parameter.device)


def fill_nf4(model: nn.Module, dtype: torch.dtype, device: torch.device, keep: Sequence[nn.Module] = ()) -> None:
    """Replace every linear layer but `keep` by an NF4 one with random weights, drawn and quantised on `device`.

    `model` may lie on torch's meta device: a large shape needs no more memory than its NF4 form and one layer.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if not isinstance(module, nn.Linear) or module in keep:
                continue
            made = Linear4bit(module.in_features, module.out_features, bias=False, compute_dtype=dtype, device="meta")
            weight = torch.randn(module.out_features, module.in_features, dtype=dtype, device=device) * 0.02
            made.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True).to(device)
            setattr(parent, name, made)


def roundtrip_error(device: str) -> float:
    """Relative RMS error of a small normal matrix after NF4 and back, with double quantisation, on `device`.

    About 0.09 where NF4 works (Dettmers et al. 2023); bitsandbytes raises where it has no kernel.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # the answer says what matters
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    error = dequantize_4bit(packed, state).float() - weight.float()
    return float(error.norm() / weight.float().norm())
