"""Small fused operations: `plain` in PyTorch and `gpu` the same in Triton without gradients, `*_training` those with."""

from __future__ import annotations

import functools
import importlib.util
import logging
import subprocess
from types import ModuleType

import torch

from moe_router.kernels import plain

log = logging.getLogger(__name__)


def of(device: torch.device) -> ModuleType:
    """The fastest implementation that works on a device; its functions are those of `plain`."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return plain
    return _tried(device)


def for_training(device: torch.device) -> ModuleType | None:
    """Fused operations with a backward pass, those of `plain_training`; None where only the plain ones work."""
    if of(device) is plain:
        return None
    from moe_router.kernels import gpu_training

    return gpu_training


@functools.cache
def _tried(device: torch.device) -> ModuleType:
    """The Triton kernels if one of them runs: Triton needs a C compiler, and a GPU that it knows."""
    from triton.errors import TritonError

    from moe_router.kernels import gpu

    try:
        ones = torch.ones(1, 8, device=device)
        gpu.swiglu(ones, ones)
    except (RuntimeError, OSError, subprocess.SubprocessError, TritonError) as error:
        log.warning("the fused kernels do not run here (%s): the plain ones are used", str(error).strip().splitlines()[0])
        return plain
    return gpu
