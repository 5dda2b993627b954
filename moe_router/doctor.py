"""What this machine can do: versions, devices, NF4, memory, and which bases fit."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_router.config import Config
from moe_router.machine import Device, accelerators, cores, cpu, cpu_flags, versions
from moe_router.memory import LLAMA, NF4_BITS, Demand, Load, Shape, inference, training
from moe_router.workspace import Workspace, digest_file, read_json

NF4_LIMIT = 0.15
"""Relative error above which NF4 is called broken; it is 0.09 where it works."""
EMBEDDED_PATH = Path(__file__).parent / "embedded_base"
GIB = 1 << 30


@dataclass(frozen=True)
class Nf4:
    """Whether NF4 works on a device."""

    works: bool
    relative_error: float | None
    detail: str


@dataclass(frozen=True)
class Fit:
    """One base on this machine."""

    shape: Shape
    training: Demand
    inference: Demand

    def fits(self, demand: Demand, devices: tuple[Device, ...]) -> dict[str, bool | None]:
        """For each device whether the demand fits into its free memory now; None where that is unknown."""
        return {d.name: None if d.free is None else demand.total <= d.free for d in devices}

    def arithmetic(self) -> Iterator[str]:
        """The sums in words, one line each."""
        s, t, i = self.shape, self.training, self.inference
        yield (
            f"{s.name}: weights {s.linear_params / 1e9:.3f}e9 × {NF4_BITS:.3f}/8 + {s.other_params / 1e9:.3f}e9 × 2 B"
            f" = {_gib(s.weight_bytes)}"
        )
        yield f"    training: {_sum(t, 'activations, logits and gradients')}"
        yield f"    inference: {_sum(i, 'KV cache')}"


@dataclass(frozen=True)
class EmbeddedBase:
    """The base that ships in the package."""

    path: Path
    sha256: str
    """sha256 over the lines `checksum  name` of its files in order of name, as `sha256sum` prints them."""
    parameters: int
    intact: bool
    """Whether every file matches the checksum it was published with."""


@dataclass(frozen=True)
class Diagnosis:
    """Everything `doctor` finds."""

    python: str
    platform: str
    versions: dict[str, str]
    cores: int
    cpu_flags: tuple[str, ...]
    devices: tuple[Device, ...]
    nf4: dict[str, Nf4]
    disk_free: int
    load: Load
    bases: tuple[Fit, ...]
    embedded_base: EmbeddedBase

    def to_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes, unknowns null."""
        plain = asdict(self)
        plain["embedded_base"]["path"] = str(self.embedded_base.path)
        plain["memory_free"] = self.devices[0].free
        plain["bases"] = [self._base_json(fit) for fit in self.bases]
        return plain

    def _base_json(self, fit: Fit) -> dict[str, Any]:
        def part(demand: Demand) -> dict[str, Any]:
            return asdict(demand) | {"total": demand.total, "fits": fit.fits(demand, self.devices)}

        return {
            "name": fit.shape.name,
            "parameters": fit.shape.params,
            "training": part(fit.training),
            "inference": part(fit.inference),
            "arithmetic": [line.strip() for line in fit.arithmetic()],
        }

    def lines(self) -> Iterator[str]:
        """The same for people."""
        yield f"python {self.python} on {self.platform}"
        yield "  ".join(f"{name} {version}" for name, version in self.versions.items())
        yield ""
        yield f"CPU: {self.cores} cores, {' '.join(self.cpu_flags) or 'flags unknown'}"
        for device in self.devices:
            yield f"{device.name}: {device.model}, {_gib(device.free)} free of {_gib(device.total)}"
        for name, nf4 in self.nf4.items():
            yield f"NF4 on {name}: {'works' if nf4.works else 'does not work'} ({nf4.detail})"
        yield f"disk: {_gib(self.disk_free)} free in the workspace"
        base = self.embedded_base
        state = "intact" if base.intact else "DAMAGED: reinstall moe-router"
        yield f"embedded base: {base.parameters:,} parameters, {state}, {base.path}"
        yield ""
        yield (
            f"Bases in NF4, {self.load.total_rank} rank slots, {self.load.step_tokens} tokens a training step,"
            f" answers over {self.load.context} tokens:"
        )
        for fit in self.bases:
            for use, demand in (("training", fit.training), ("inference", fit.inference)):
                verdicts = ", ".join(f"{name}: {_verdict(fits)}" for name, fits in fit.fits(demand, self.devices).items())
                yield f"  {fit.shape.name:>4} {use:<9} {_gib(demand.total):>9}  {verdicts}"
        yield ""
        yield "The arithmetic:"
        for fit in self.bases:
            yield from fit.arithmetic()


def examine(workspace: Workspace, config: Config) -> Diagnosis:
    """Look at this machine; nothing is changed and no base is loaded."""
    devices = (cpu(), *accelerators())
    load = load_of(config)
    return Diagnosis(
        python=platform.python_version(),
        platform=platform.platform(),
        versions=versions(),
        cores=cores(),
        cpu_flags=cpu_flags(),
        devices=devices,
        nf4={d.name: check_nf4(d.name) for d in devices},
        disk_free=shutil.disk_usage(_existing(workspace.root)).free,
        load=load,
        bases=tuple(Fit(shape, training(shape, load), inference(shape, load)) for shape in LLAMA),
        embedded_base=embedded_base(),
    )


def load_of(config: Config) -> Load:
    """What these settings ask of a base: a step holds the rows of every slice, and a long record makes a row of its own."""
    experts = config.experts
    shared = experts.shared_rank if experts.mode == "shared" else 0
    row = max(experts.row_tokens, experts.max_tokens)
    return Load(
        total_rank=config.slice.most * experts.rank + shared,
        active_rank=experts.rank + shared,
        step_tokens=config.slice.most * row * experts.rows_per_step,
        pass_tokens=max(experts.micro_tokens, row) if experts.micro_tokens else 0,
        row_tokens=row,
        checkpointed=experts.gradient_checkpointing,
        optimizer=experts.optimizer,
        compute_bytes=4 if config.base.dtype == "float32" else 2,
    )


def embedded_base(path: Path = EMBEDDED_PATH) -> EmbeddedBase:
    """Checksums and size of the embedded base, read from its files. Raises WorkspaceError when its list is missing."""
    published = read_json(path / "sha256.json")
    found = {name: digest_file(path / name) for name in sorted(published) if (path / name).exists()}
    listing = "".join(f"{digest}  {name}\n" for name, digest in found.items())
    return EmbeddedBase(
        path=path,
        sha256=hashlib.sha256(listing.encode()).hexdigest(),
        parameters=sum(_tensor_sizes(path / name) for name in found if name.endswith(".safetensors")),
        intact=found == published,
    )


def check_nf4(device: str) -> Nf4:
    """Quantise a small matrix to NF4 and back on `device`."""
    try:
        from moe_router.experts.bnb import roundtrip_error

        error = roundtrip_error(device)
    except (ImportError, OSError, RuntimeError, ValueError, AssertionError, AttributeError) as failure:
        return Nf4(False, None, str(failure).strip().splitlines()[0] if str(failure).strip() else type(failure).__name__)
    return Nf4(error < NF4_LIMIT, error, f"relative error {error:.3f} after a round trip")


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _tensor_sizes(path: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for size in tensor["shape"]:
                count *= size
            total += count
    return total


def _sum(demand: Demand, working: str) -> str:
    return (
        f"{_gib(demand.weights)} weights + {_gib(demand.adapters)} adapters + {_gib(demand.working)} {working}"
        f" + {_gib(demand.runtime)} runtime = {_gib(demand.total)}"
    )


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.1f} GiB"


def _verdict(fits: bool | None) -> str:
    return {True: "fits", False: "does not fit", None: "unknown"}[fits]
