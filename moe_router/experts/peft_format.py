"""All contact with PEFT: an expert on disk is a plain PEFT adapter folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from moe_router.errors import LibraryError
from moe_router.workspace import atomic, write_json

if TYPE_CHECKING:
    from moe_router.experts.adapters import RoutedModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraSettings:
    """What of a LoRA adapter's configuration changes its output."""

    rank: int
    alpha: float
    rslora: bool

    @property
    def scale(self) -> float:
        """alpha/r (Hu et al. 2021), or alpha/√r with rsLoRA (Kalajdzievski 2023)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Adapter:
    """One adapter in memory."""

    settings: LoraSettings
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """By module path: A (r, d_in) and B (r, d_out), without the LoRA scale."""

    def to(self, dtype: torch.dtype) -> Adapter:
        """The same in another type."""
        return Adapter(self.settings, {path: (a.to(dtype), b.to(dtype)) for path, (a, b) in self.factors.items()})


def load_adapter(folder: Path) -> Adapter:
    """An expert folder. Raises LibraryError when it is damaged, not finite, or of a kind that cannot be mixed."""
    return Adapter(load_settings(folder), load_factors(folder))


def fill(model: RoutedModel, name: str, factors: Mapping[str, Any], where: object) -> None:
    """Copy an adapter's factors into a model's slots. Raises LibraryError, naming `where`, when they do not fit its base."""
    views = model.factors(name)
    if views.keys() != factors.keys():
        odd = sorted(views.keys() ^ factors.keys())[0]
        raise LibraryError(f"{where} does not fit the base (module {odd}): it was made for another base")
    for path, (a, b) in views.items():
        if a.shape != factors[path][0].shape or b.shape != factors[path][1].shape:
            raise LibraryError(f"{where} does not fit the base (shape of {path}): it was made for another base")
        a.copy_(factors[path][0])
        b.copy_(factors[path][1])


def save_adapter(
    folder: Path, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], settings: LoraSettings, base_id: str
) -> None:
    """Write one expert as PEFT does. `factors` maps a module path to A (r, d_in) and B (r, d_out)."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    tensors = {}
    for path, (a, b) in factors.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = a.detach().cpu().contiguous()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = b.detach().cpu().T.contiguous()
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        use_rslora=settings.rslora,
        target_modules=sorted({path.rpartition(".")[2] for path in factors}),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_id,
        inference_mode=True,
    ).to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    with atomic(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / CONFIG, json.loads(json.dumps(config, default=str)))


def load_settings(folder: Path) -> LoraSettings:
    """The LoRA settings of an expert folder. Raises LibraryError for kinds that cannot share one base and one gate."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        settings = LoraSettings(int(config["r"]), float(config["lora_alpha"]), bool(config.get("use_rslora", False)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LibraryError(f"{path} is missing or damaged: train or import the expert again") from error
    if config.get("use_dora"):
        raise LibraryError(f"{path}: DoRA normalises the sum of base and adapter, so experts cannot be mixed; use LoRA")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(("pissa", "loftq", "olora", "corda")):
        raise LibraryError(f"{path}: {start} rewrites the base for each expert, so one base cannot serve them; use LoRA")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise LibraryError(f"{path}: rank_pattern and alpha_pattern are not supported; use one rank for all layers")
    return settings


def load_factors(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """An expert's factors by module path: A (r, d_in), B (r, d_out). Raises LibraryError if damaged or not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise LibraryError(f"{path} is missing or damaged ({error}): train or import the expert again") from error
    broken = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if broken:
        raise LibraryError(f"{path}: {broken} holds NaN or infinity: train or import the expert again")
    modules = {name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in tensors}
    try:
        return {
            module: (tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"].T.contiguous())
            for module in sorted(modules)
        }
    except KeyError as error:
        raise LibraryError(f"{path} has no tensor {error}: it is not a LoRA adapter of linear layers") from error


@torch.no_grad()
def peft_logits(model: torch.nn.Module, folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Logits when PEFT itself loads an adapter folder onto `model`, which is given back as it was.

    *Shape:* tokens (rows, seq) → (rows, seq, vocabulary).
    """
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(model, folder)
    try:
        return wrapped(input_ids=tokens, use_cache=False).logits
    finally:
        wrapped.unload()


def eva_directions(
    model: torch.nn.Module, layers: Mapping[str, str], batches: Sequence[dict[str, torch.Tensor]], rank: int
) -> dict[str, torch.Tensor]:
    """The main directions of each layer's inputs by PEFT's EVA (Paischer et al. 2024), all layers with the same rank.

    `layers` maps a name to the module path that is watched. Each batch has `input_ids`, `position_ids` and `labels`
    (rows, seq); tokens whose label is -100 are left out. Batches are repeated until the directions have settled.
    *Shape:* → (rank, d_in) by name, orthonormal rows, fp32.
    """
    from peft import EvaConfig, LoraConfig, get_eva_state_dict

    config = LoraConfig(r=rank, target_modules=list(layers.values()), init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    found = get_eva_state_dict(model, batches, config, forward_fn=_forward_only, show_progress_bar=False)
    return {name: found[path] for name, path in layers.items()}


@torch.no_grad()
def _forward_only(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, logits_to_keep=1)
