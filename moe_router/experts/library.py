"""The library: a folder of experts that belong to one base.

library.json                 base, template, order of the experts
shared/                      the always-on expert, unless trained in isolated mode
<slice>/adapter_config.json  a plain PEFT adapter
<slice>/adapter_model.safetensors
<slice>/expert.json          what it was trained on, how, and its checksum
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_router.config import BaseConfig
from moe_router.data.templates import template
from moe_router.errors import LibraryError, WorkspaceError
from moe_router.workspace import digest_file, digest_json, read_json, write_json

if TYPE_CHECKING:
    from moe_router.experts.adapters import RoutedModel
    from moe_router.experts.base import Base

INDEX = "library.json"
CARD = "expert.json"
SHARED = "shared"
GATE_CARD = "gate.json"
GATE_WEIGHTS = "gate.safetensors"
LOSSES = "losses.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Library:
    """An opened library; weights are read when a model is made of it."""

    path: Path
    names: tuple[str, ...]
    """Routed experts, in the gate's order."""
    has_shared: bool
    base: BaseConfig
    base_digest: str
    template: str
    max_tokens: int
    inputs: str
    """Digest of base, slices and settings it was trained with; the train stage skips equal work."""
    cards: Mapping[str, Mapping[str, Any]]
    """expert.json of every expert, the shared one included."""
    template_digest: str = ""
    """Of the template's text as the experts saw it; empty in libraries that do not know it."""

    @classmethod
    def load(cls, path: str | Path) -> Library:
        """Open the library at `path`. Raises LibraryError when it is missing or damaged."""
        path = Path(path)
        if not (path / INDEX).exists():
            raise LibraryError(f"{path} holds no library ({INDEX} is missing): run `moe-router train-experts` first")
        try:
            index = read_json(path / INDEX)
            if index["format"] != FORMAT:
                raise LibraryError(f"{path / INDEX} has format {index['format']}, this version reads {FORMAT}: train it again")
            members = [*([SHARED] if index["shared"] else []), *index["experts"]]
            return cls(
                path=path,
                names=tuple(index["experts"]),
                has_shared=index["shared"],
                base=BaseConfig(**index["base"]),
                base_digest=index["base_digest"],
                template=index["template"],
                max_tokens=index["max_tokens"],
                inputs=index["inputs"],
                template_digest=index.get("template_digest", ""),
                cards={name: read_json(path / name / CARD) for name in members},
            )
        except (KeyError, TypeError) as error:
            raise LibraryError(f"{path / INDEX} is damaged ({error}): train the library again") from error
        except WorkspaceError as error:
            raise LibraryError(f"{error}; or remove the expert with `moe-router experts remove`") from error

    def save_index(self) -> None:
        """Write library.json; done last, so that a library is either whole or not there."""
        index = {
            "format": FORMAT,
            "base": asdict(self.base),
            "base_digest": self.base_digest,
            "template": self.template,
            "template_digest": self.template_digest,
            "max_tokens": self.max_tokens,
            "inputs": self.inputs,
            "shared": self.has_shared,
            "experts": list(self.names),
        }
        write_json(self.path / INDEX, index)

    @property
    def members(self) -> tuple[str, ...]:
        """All expert folders, the shared one first."""
        return (SHARED, *self.names) if self.has_shared else self.names

    @cached_property
    def digest(self) -> str:
        """Identifies the base and every adapter in it; gate and caches refer to it."""
        checksums = [[name, self.cards[name]["sha256"]] for name in self.members]
        return digest_json([self.base_digest, self.template, checksums])

    def open(self, base: Base) -> RoutedModel:
        """The base with this library's adapters attached, in the base's compute type.

        Raises LibraryError when the base or its chat template is another, or an adapter is damaged, not finite or of the
        wrong shape.
        """
        if base.digest != self.base_digest:
            raise LibraryError(f"{self.path} was trained on another base than {base.id!r}: use base {self.base.model!r}")
        if self.template_digest and template(self.template, base.tokenizer).digest != self.template_digest:
            raise LibraryError(
                f"{self.path} was trained with another text for template {self.template!r} than base {base.id!r} makes now: "
                "restore the base's chat template, or train again"
            )
        from moe_router.experts.adapters import RankLayout, RoutedModel
        from moe_router.experts.peft_format import load_factors, load_settings

        for name in self.members:
            _check_file(self.path / name, self.cards[name])
        settings = {name: load_settings(self.path / name) for name in self.members}
        layout = RankLayout(
            self.names,
            tuple(settings[name].rank for name in self.names),
            settings[SHARED].rank if self.has_shared else 0,
        )
        factors = {name: load_factors(self.path / name) for name in self.members}
        model = RoutedModel(base, layout, {name: s.scale for name, s in settings.items()})
        try:
            for name in self.members:
                _fill(model, name, factors[name], self.path / name)
        except LibraryError:
            model.detach()
            raise
        return model

    def remove(self, name: str) -> Library:
        """Delete one routed expert: its folder, its place in the index, and the gate, which remembers its queries.

        Raises LibraryError for an unknown name.
        """
        if name == SHARED:
            raise LibraryError("the shared expert is part of every other one: train again with experts.mode = 'isolated'")
        if name not in self.names:
            raise LibraryError(f"no expert {name!r} in {self.path}: there are {', '.join(self.names)}")
        if len(self.names) == 1:
            raise LibraryError(f"{name!r} is the last expert of {self.path}: delete the folder instead")
        kept = replace(
            self,
            names=tuple(other for other in self.names if other != name),
            cards={other: card for other, card in self.cards.items() if other != name},
            inputs="edited",  # the train stage must not take it for its own work
        )
        kept.save_index()
        shutil.rmtree(self.path / name)
        for file in (GATE_CARD, GATE_WEIGHTS, LOSSES):
            (self.path / file).unlink(missing_ok=True)
        return kept


@dataclass(frozen=True)
class Check:
    """One finding of `verify`."""

    name: str
    ok: bool
    detail: str


def verify(library: Library) -> Iterator[Check]:
    """Check every expert: files whole, finite, trained, on this base, and that it moves the logits."""
    import numpy as np
    import torch

    from moe_router.experts.base import load_base
    from moe_router.experts.peft_format import load_factors

    for name in library.members:
        try:
            _check_file(library.path / name, library.cards[name])
            updated = sum(float(b.float().abs().sum()) for _, b in load_factors(library.path / name).values())
        except LibraryError as error:
            yield Check(name, False, str(error))
            return
        yield Check(name, updated > 0, "finite, matches its checksum" + ("" if updated else ", but was never updated"))
    base = load_base(library.base)
    tokens = torch.tensor([base.tokenizer("How do I ask for a refund?", add_special_tokens=False)["input_ids"]])
    tokens = tokens.to(base.device)
    with torch.no_grad(), library.open(base) as model:
        plain = base.model(input_ids=tokens).logits
        for index, name in enumerate(library.names):
            weights = np.eye(len(library.names), dtype=np.float32)[index : index + 1]
            with model.routed(model.route(weights, np.zeros(1))):
                moved = float((base.model(input_ids=tokens).logits - plain).abs().max())
            yield Check(name, moved > 0, f"moves a logit by {moved:.3g}")


def checksum(folder: Path) -> str:
    """sha256 of an expert's weights and of its LoRA settings together."""
    return hashlib.sha256(
        (digest_file(folder / "adapter_model.safetensors") + digest_file(folder / "adapter_config.json")).encode()
    ).hexdigest()


def _check_file(folder: Path, card: Mapping[str, Any]) -> None:
    try:
        found = checksum(folder)
    except OSError as error:
        raise LibraryError(f"{folder} is incomplete ({error.strerror}): train or import the expert again") from error
    if found != card.get("sha256"):
        raise LibraryError(f"{folder} does not match the checksum in {CARD}: train or import the expert again")


def _fill(model: RoutedModel, name: str, factors: Mapping[str, Any], folder: Path) -> None:
    views = model.factors(name)
    if views.keys() != factors.keys():
        odd = sorted(views.keys() ^ factors.keys())[0]
        raise LibraryError(f"{folder} does not fit the base (module {odd}): it was made for another base")
    for path, (a, b) in views.items():
        if a.shape != factors[path][0].shape or b.shape != factors[path][1].shape:
            raise LibraryError(f"{folder} does not fit the base (shape of {path}): it was made for another base")
        a.copy_(factors[path][0])
        b.copy_(factors[path][1])
