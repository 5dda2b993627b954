"""What the machine is: packages, cores, instruction sets, devices and their memory. Unknown is None, never a guess."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "moe-router",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "sentence-transformers",
    "scikit-learn",
    "datasets",
    "accelerate",
    "safetensors",
    "numpy",
    "pyarrow",
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
"""Instruction sets that matter for speed here; `avx512_bf16` also for bitsandbytes' repacked kernel."""


@dataclass(frozen=True)
class Device:
    """A place to run; memory in bytes, None where it cannot be told."""

    name: str
    model: str
    free: int | None
    total: int | None


def versions() -> dict[str, str]:
    """Installed version of each package that matters."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_flags() -> tuple[str, ...]:
    """Those of CPU_FLAGS that the CPU has; empty where the system does not say."""
    has = set(_cpuinfo("flags", "features").split())
    return tuple(flag for flag in CPU_FLAGS if flag in has)


def cpu() -> Device:
    """The CPU and main memory, as far as a container's limit allows."""
    total, free = _meminfo("MemTotal"), _meminfo("MemAvailable")
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if None not in (total, free, limit, used) and limit < total:
        total, free = limit, min(free, max(0, limit - used))
    return Device("cpu", _cpuinfo("model name") or platform.processor() or platform.machine(), free, total)


def accelerators() -> Iterator[Device]:
    """Every device that torch sees beside the CPU; none where torch itself does not load."""
    try:
        import torch
    except (ImportError, OSError):
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield Device(f"cuda:{index}", torch.cuda.get_device_name(index), free, total)
    if torch.backends.mps.is_available():
        yield Device("mps", platform.processor(), None, None)


def _meminfo(key: str) -> int | None:
    """A line of /proc/meminfo in bytes."""
    lines = _lines("/proc/meminfo")
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def _cpuinfo(*keys: str) -> str:
    """The first value of any of `keys` in /proc/cpuinfo, or nothing."""
    pairs = (line.partition(":") for line in _lines("/proc/cpuinfo"))
    return next((value.strip() for key, _, value in pairs if key.strip().lower() in keys), "")


def _number(path: str) -> int | None:
    """The number a file holds; None for no file, or a word such as `max`."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
