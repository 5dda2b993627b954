"""All contact with bitsandbytes: 4-bit loading, the CPU trap, and dequantised copies."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn


def nf4_config(dtype: torch.dtype) -> Any:
    """NF4 with double quantisation (Dettmers et al. 2023), computing in `dtype`."""
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it misses a kernel that is not used here
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_4bit(module: nn.Module) -> bool:
    """Whether the module is a bitsandbytes 4-bit linear layer (without importing bitsandbytes when none is loaded)."""
    return type(module).__name__ in ("Linear4bit", "LinearNF4", "LinearFP4")


def keep_differentiable(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-bf16.

    One forward in eval mode would move them for good into a kernel without autograd: later gradients are silently
    zero and logits move.
    """
    for module in model.modules():
        if is_4bit(module):
            module.support_avx512bf16_for_cpu = False


def make_resident(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every 4-bit layer by a plain one holding the same numbers in `dtype`.

    The weights are the dequantised NF4 values, so experts trained on either form fit the other; only the work of
    dequantising in every pass is saved.
    """
    from bitsandbytes.functional import dequantize_4bit

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if not is_4bit(module):
                continue
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state).to(dtype)  # (d_out, d_in)
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
            plain.weight = nn.Parameter(weight, requires_grad=False)
            if module.bias is not None:
                plain.bias = nn.Parameter(module.bias.data.to(dtype), requires_grad=False)
            setattr(parent, name, plain)


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
