"""The base: one frozen causal LM, shared by all experts."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moe_router.config import BaseConfig
from moe_router.errors import BaseModelError
from moe_router.experts import bnb, gptq, nf4_cache
from moe_router.workspace import digest_file

EMBEDDED = "embedded"
EMBEDDED_PATH = Path(__file__).parent.parent / "embedded_base"
ROUTERS = re.compile(r"Router|Gating|Gate(?!d)")
"""In the class names of transformers' routers: Llama4Router, JetMoeTopKGating, HunYuanMoEV1Gate."""
ATTENTION = re.compile("attn|attention")
RESIDENT_BYTES = 1 << 30
"""On the CPU, bases up to this size in the compute type are held dequantised."""


@dataclass(frozen=True)
class Base:
    """A loaded base and what identifies it."""

    model: nn.Module
    """A transformers causal LM in eval mode, no parameter of it trainable."""
    tokenizer: Any
    id: str
    digest: str
    """Identifies config, weights and quantisation: experts refuse a base of another digest."""
    dtype: torch.dtype
    resident: bool
    """Whether 4-bit weights are held dequantised."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def eos(self) -> int:
        return self.tokenizer.eos_token_id

    @functools.cached_property
    def opening(self) -> tuple[int, ...]:
        """The tokens that the tokenizer puts before a text: beginning-of-text, or nothing."""
        tokens = tuple(self.tokenizer("")["input_ids"])
        return tokens if tokens == (self.tokenizer.bos_token_id,) else ()

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return getattr(self.model.config, "max_position_embeddings", 2048)

    def linears(self) -> dict[str, nn.Module]:
        """Every linear layer that adapters go on, by module path.

        All but the output head, what lies within a mixture of experts of the base's own (its router passes tokens on without
        their rows, which have the gates), and layers called like one in there, which PEFT could not tell apart.
        """
        head = self.model.get_output_embeddings()
        modules = dict(self.model.named_modules())
        found = {path: m for path, m in modules.items() if m is not head and (isinstance(m, nn.Linear) or bnb.is_4bit(m))}
        mixtures = tuple(_mixtures(modules))
        within = {path.rpartition(".")[2] for path in found if f"{path}.".startswith(mixtures)}
        return {path: module for path, module in found.items() if path.rpartition(".")[2] not in within}


def _mixtures(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Beginnings of the paths within a mixture of experts: the block that a router is in, or the router alone where
    attention is in that block too."""
    for path, module in modules.items():
        if ROUTERS.search(type(module).__name__):
            block = path.rpartition(".")[0]
            beside = (name for name, _ in modules[block].named_children())
            yield f"{path}." if any(ATTENTION.search(name) for name in beside) else f"{block}."


def load_base(config: BaseConfig, device: str | torch.device | None = None) -> Base:
    """Load the base frozen and ready to train adapters on.

    Its NF4 form is kept in the user's cache folder and read from there the next time. Raises BaseModelError when it is
    missing, damaged, quantised otherwise than `config` says, or not a causal LM. Nothing is downloaded unless
    `config.model` names a hub id.
    """
    from transformers import AutoTokenizer

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, config.dtype)
    source = _source(config.model)
    try:
        digest = base_digest(config)
        _check_quantisation(config, source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        with _quiet():
            if config.quantization == "nf4":
                model = _read_nf4(source, device, dtype, nf4_cache.place(digest, dtype))
            elif config.quantization == gptq.METHOD:
                model = _read_gptq(source, device, dtype)
            else:
                model = _read(source, dtype=dtype).to(device)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BaseModelError(f"base {config.model!r} cannot be loaded ({reason}): check base.model and the files") from error
    model.eval().requires_grad_(False)
    resident = config.quantization != "none" and device.type == "cpu" and _dense_bytes(model, dtype) <= RESIDENT_BYTES
    if resident:
        make_resident(model, dtype)
    return Base(model, tokenizer, config.model, digest, dtype, resident)


def make_resident(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every layer that is quantised by a plain one that holds the same numbers in `dtype`."""
    bnb.make_resident(model, dtype)
    gptq.make_resident(model, dtype)


def _dense_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    packed = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, gptq.GptqLinear))
    return (packed + model.num_parameters()) * dtype.itemsize  # transformers counts NF4 parameters as what they stand for


def _check_quantisation(config: BaseConfig, source: str) -> None:
    from transformers import AutoConfig

    is_gptq, wanted = gptq.is_checkpoint(AutoConfig.from_pretrained(source)), config.quantization == gptq.METHOD
    if is_gptq and not wanted:
        raise BaseModelError(f"base {config.model!r} is a GPTQ checkpoint: set base.quantization = 'gptq'")
    if wanted and not is_gptq:
        raise BaseModelError(f"base {config.model!r} is no GPTQ checkpoint: set base.quantization = 'nf4' or 'none'")
    if wanted and not gptq.installed():
        raise BaseModelError("GPTQ bases need GPTQModel: pip install 'moe-router[gptq]'")


def _read(source: str | Path, **options: Any) -> nn.Module:
    """A model all of whose weights are in its files."""
    from transformers import AutoModelForCausalLM

    model, said = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    if said["missing_keys"]:
        raise ValueError(f"its files lack {sorted(said['missing_keys'])[0]}")
    return model


def _read_nf4(source: str, device: torch.device, dtype: torch.dtype, place: Path | None) -> nn.Module:
    """From `place` if its NF4 form is kept there, else quantised now, and kept."""
    bnb.prepare_loading()
    if place is not None and nf4_cache.whole(place):
        model = _read(place, dtype=dtype, device_map={"": device})
    else:
        model = _read(source, dtype=dtype, device_map={"": device}, quantization_config=bnb.nf4_config(dtype))
        if place is not None:
            nf4_cache.keep(model, place)
    bnb.keep_differentiable(model)
    return model


def _read_gptq(source: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    with gptq.quiet():
        model = _read(source, dtype=dtype, device_map={"": device}, quantization_config=gptq.loading_config())
    gptq.replace_layers(model)
    return model


def base_digest(config: BaseConfig) -> str:
    """Identity of a base: configuration and weight files, and how they are quantised."""
    return hashlib.sha256(f"{_files_digest(_source(config.model))} {config.quantization}".encode()).hexdigest()


def _source(model: str) -> str:
    if model != EMBEDDED:
        return str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model
    expected = json.loads((EMBEDDED_PATH / "sha256.json").read_text(encoding="utf-8"))
    for name, digest in expected.items():
        path = EMBEDDED_PATH / name
        if not path.exists() or digest_file(path) != digest:
            raise BaseModelError(f"embedded base: {path} is missing or damaged; reinstall moe-router")
    return str(EMBEDDED_PATH)


@functools.cache
def _files_digest(source: str) -> str:
    """Small files whole, large ones by size, first and last MiB (a full read of 13 GB would take longer than loading)."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source, allow_patterns=["*.json", "*.jinja", "*.safetensors"]))
    digest = hashlib.sha256()
    names = ["config.json", "tokenizer.json", "chat_template.jinja", "*.safetensors"]
    settings = folder / "tokenizer_config.json"
    if settings.exists() and '"chat_template"' in settings.read_text(encoding="utf-8"):
        names.append(settings.name)  # older tokenizers keep their chat template there
    for path in sorted(path for name in names for path in folder.glob(name)):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, path.stat().st_size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()


class _quiet:  # noqa: N801 - reads as a statement
    """transformers draws progress bars of its own while loading and saving; ours is enough."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.was_on = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        if self.was_on:
            logging.enable_progress_bar()
