"""Experts for other engines, and back: one plain PEFT adapter that is exactly a mixture, or a merged model.

A lone expert folder of a library with a shared expert is not the trained model. LoRA factors add up by concatenation,
Σ w_i·s_i·B_i·A_i = [w_1·s_1·B_1 … ]·[A_1; …], so any fixed mixture is one adapter whose rank is the sum of the ranks.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from moe_router.errors import LibraryError
from moe_router.experts import bnb
from moe_router.experts.base import Base, make_resident
from moe_router.experts.library import CARD, SHARED, Library
from moe_router.experts.peft_format import Adapter, LoraSettings, load_adapter, save_adapter
from moe_router.workspace import read_json


def mixture_of(library: Library, weights: Mapping[str, float], shared: bool = True) -> Adapter:
    """The adapter that is the mixture: routed experts by weight, and the shared one if there is one and `shared`.

    Its scale is 1: the members' scales and weights are in B. Raises LibraryError for an unknown expert, or none at all.
    """
    parts = {name: weight for name, weight in weights.items() if weight != 0}
    for name in parts:
        library.require(name)
    if library.has_shared and shared:
        parts = {SHARED: 1.0} | parts
    if not parts:
        raise LibraryError("a mixture of no experts is the base: name at least one")
    return concatenate([(library.adapter(name), weight) for name, weight in parts.items()])


def concatenate(parts: list[tuple[Adapter, float]]) -> Adapter:
    """Σ weight·adapter as one adapter of scale 1, factors in fp32. Raises LibraryError where they adapt different layers."""
    paths = parts[0][0].factors.keys()
    if any(adapter.factors.keys() != paths for adapter, _ in parts):
        raise LibraryError("the adapters are on different layers, so they cannot be one: train them with the same targets")
    factors = {}
    for path in paths:
        downs = [adapter.factors[path][0].float() for adapter, _ in parts]  # (r, d_in)
        ups = [adapter.factors[path][1].float() * (weight * adapter.settings.scale) for adapter, weight in parts]  # (r, d_out)
        factors[path] = torch.cat(downs), torch.cat(ups)
    rank = sum(adapter.settings.rank for adapter, _ in parts)
    return Adapter(LoraSettings(rank, float(rank), False), factors)


def export_adapter(library: Library, weights: Mapping[str, float], folder: Path) -> Adapter:
    """Write a mixture as a plain PEFT adapter folder. Raises LibraryError where `folder` is there already."""
    adapter = mixture_of(library, weights)
    _new(folder)
    save_adapter(folder, adapter.factors, adapter.settings, library.base.model)
    return adapter


def export_merged(library: Library, weights: Mapping[str, float], folder: Path, base: Base) -> None:
    """Write base plus mixture as one unquantised model with its tokenizer; `base` is changed and of no use afterwards.

    NF4 weights are unpacked first, so the model is what the experts were trained on, rounded to the base's compute type.
    Raises LibraryError for bases whose layers cannot be unpacked.
    """
    adapter = mixture_of(library, weights)
    if base.digest != library.base_digest:
        raise LibraryError(f"{library.path} was trained on another base than {base.id!r}: use base {library.base.model!r}")
    _new(folder)
    make_resident(base.model, base.dtype)
    layers = base.linears()
    for path, (a, b) in adapter.factors.items():
        layer = layers[path]
        if not isinstance(layer, torch.nn.Linear):
            raise LibraryError(f"layer {path} of base {base.id!r} cannot be unpacked for merging: export an adapter instead")
        change = (b.T @ a).to(layer.weight.device)  # (d_out, d_in), scale 1
        layer.weight.data = (layer.weight.data.float() + change).to(layer.weight.dtype)
    bnb.forget_quantisation(base.model)
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


def import_adapter(library: Library, folder: Path, name: str, base: Base) -> Library:
    """Take a PEFT adapter, or an expert folder of another library, in as a routed expert; the gate is deleted.

    The shared expert is on in every mixture. An adapter that was not trained beside it gets the shared expert's negative
    concatenated, so that both together are exactly the adapter. Raises LibraryError when it does not fit the base, or is
    damaged, or of a kind that cannot be mixed.
    """
    if not folder.is_dir():
        raise LibraryError(f"{folder} is no folder: give the one with adapter_config.json in it")
    card = read_json(folder / CARD) if (folder / CARD).exists() else {}
    if card and card.get("base_digest") != library.base_digest:
        raise LibraryError(f"{folder} was trained on base {card.get('base')!r}, {library.path} on another: import it there")
    adapter = load_adapter(folder)
    _fits(adapter, library, folder, base)
    if library.has_shared and card.get("beside") != library.cards[SHARED]["sha256"]:
        adapter = concatenate([(library.adapter(SHARED), -1.0), (adapter, 1.0)]).to(base.dtype)
        card = {**card, "beside": library.cards[SHARED]["sha256"]}
    facts = {"records": 0, "tokens": 0, "base": base.id, "base_digest": base.digest, "imported_from": folder.name}
    made = library.admit(name, adapter, facts | card)
    made.forget_gate()
    return made


def _fits(adapter: Adapter, library: Library, folder: Path, base: Base) -> None:
    layers = base.linears()
    present = library.adapter(library.members[0]).factors
    if adapter.factors.keys() != present.keys():
        odd = sorted(adapter.factors.keys() ^ present.keys())[0]
        raise LibraryError(f"{folder} does not adapt the same layers as {library.path} ({odd}): train it with the same targets")
    for path, (a, b) in adapter.factors.items():
        if path not in layers or (a.shape[1], b.shape[1]) != (layers[path].in_features, layers[path].out_features):
            raise LibraryError(f"{folder} does not fit base {base.id!r} (layer {path}): it was made for another base")


def _new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LibraryError(f"{folder} is there already: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)


def copy_expert(library: Library, name: str, folder: Path) -> None:
    """Write an expert's own folder as it is, card included: another library with the same shared expert can import it.

    Raises LibraryError for an unknown or damaged expert.
    """
    library.require(name)
    library.check(name)
    _new(folder)
    shutil.copytree(library.path / name, folder, dirs_exist_ok=True)
