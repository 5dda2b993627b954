"""The library: a folder of experts that belong to one base.

library.json                 base, template, order of the experts
shared/                      the always-on expert, unless trained in isolated mode
<slice>/adapter_config.json  a plain PEFT adapter
<slice>/adapter_model.safetensors
<slice>/expert.json          what it was trained on, how, and its checksum
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_router.config import BaseConfig
from moe_router.data.naming import TAKEN
from moe_router.data.templates import template
from moe_router.errors import LibraryError, WorkspaceError
from moe_router.workspace import digest_file, digest_json, read_json, write_json

if TYPE_CHECKING:
    from moe_router.experts.adapters import RoutedModel
    from moe_router.experts.base import Base
    from moe_router.experts.peft_format import Adapter

INDEX = "library.json"
CARD = "expert.json"
SHARED = "shared"
GATE_CARD = "gate.json"
GATE_WEIGHTS = "gate.safetensors"
LOSSES = "losses.safetensors"
RECIPES = "recipes"
"""Folder of the recipes, beside the experts'."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
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
        from moe_router.experts.peft_format import fill
        from moe_router.experts.targets import restricted

        adapters = {name: self.adapter(name) for name in self.members}
        layout = RankLayout(
            self.names,
            tuple(adapters[name].settings.rank for name in self.names),
            adapters[SHARED].settings.rank if self.has_shared else 0,
        )
        base = restricted(base, {path for adapter in adapters.values() for path in adapter.factors})
        model = RoutedModel(base, layout, {name: adapter.settings.scale for name, adapter in adapters.items()})
        try:
            for name in self.members:
                fill(model, name, adapters[name].factors, self.path / name)
        except LibraryError:
            model.detach()
            raise
        return model

    def adapter(self, name: str) -> Adapter:
        """One member's factors and settings. Raises LibraryError when its files are damaged, or not those of its card."""
        from moe_router.experts.peft_format import load_adapter

        self.check(name)
        return load_adapter(self.path / name)

    def require(self, name: str) -> Mapping[str, Any]:
        """The card of a member. Raises LibraryError for an unknown name."""
        if name not in self.members:
            raise LibraryError(f"no expert {name!r} in {self.path}: there are {', '.join(self.members)}")
        return self.cards[name]

    def check(self, name: str) -> None:
        """Raises LibraryError when a member's files do not match its checksum."""
        folder = self.path / name
        try:
            found = checksum(folder)
        except OSError as error:
            raise LibraryError(f"{folder} is incomplete ({error.strerror}): train or import the expert again") from error
        if found != self.cards[name].get("sha256"):
            raise LibraryError(f"{folder} does not match the checksum in {CARD}: train or import the expert again")

    def remove(self, name: str) -> Library:
        """Delete one routed expert: its folder, its place in the index, and the gate, which remembers its queries.

        Raises LibraryError for an unknown name.
        """
        self._routed(name)
        if len(self.names) == 1:
            raise LibraryError(f"{name!r} is the last expert of {self.path}: delete the folder instead")
        kept = self._edited([other for other in self.names if other != name])
        shutil.rmtree(self.path / name)
        self.forget_gate()
        return kept

    def rename(self, old: str, new: str) -> Library:
        """Call a routed expert otherwise; its files move with it. Raises LibraryError for a name unknown, taken or unfit."""
        self._routed(old)
        self._free(new)
        write_json(self.path / old / CARD, {**self.cards[old], "name": new})
        shutil.copytree(self.path / old, self.path / new)  # a kill in between leaves the old library whole
        kept = self._edited([new if name == old else name for name in self.names])
        shutil.rmtree(self.path / old)
        return kept

    def admit(self, name: str, adapter: Adapter, card: Mapping[str, Any]) -> Library:
        """Add one routed expert, last in the gate's order; the others' files are not touched.

        Raises LibraryError for a name that is taken or no folder can have.
        """
        from moe_router.experts.peft_format import save_adapter

        self._free(name)
        folder = self.path / name
        save_adapter(folder, adapter.factors, adapter.settings, self.base.model)
        write_json(folder / CARD, {**card, "name": name, "rank": adapter.settings.rank, "sha256": checksum(folder)})
        return self._edited([*self.names, name])

    def forget_gate(self) -> None:
        """Delete the gate and what it was fitted on."""
        for file in (GATE_CARD, GATE_WEIGHTS, LOSSES):
            (self.path / file).unlink(missing_ok=True)

    def _edited(self, names: Sequence[str]) -> Library:
        """This library with other routed experts, whose folders are there; its index is written."""
        members = [SHARED, *names] if self.has_shared else names
        cards = {name: read_json(self.path / name / CARD) for name in members}
        inputs = "edited"  # the train stage must not take it for its own work
        made = replace(self, names=tuple(names), cards=cards, inputs=inputs)
        made.save_index()
        return made

    def _routed(self, name: str) -> None:
        if name == SHARED:
            raise LibraryError("the shared expert is part of every other one: train again with experts.mode = 'isolated'")
        self.require(name)

    def _free(self, name: str) -> None:
        if not _NAME.fullmatch(name) or name in (*TAKEN, RECIPES):
            raise LibraryError(f"expert name {name!r}: use a-z, 0-9, - and _, and not {SHARED} or {RECIPES}")
        if name in self.names:
            raise LibraryError(f"expert {name!r} is there already: remove it first, or take another name")


def checksum(folder: Path) -> str:
    """sha256 of an expert's weights and of its LoRA settings together."""
    return hashlib.sha256(
        (digest_file(folder / "adapter_model.safetensors") + digest_file(folder / "adapter_config.json")).encode()
    ).hexdigest()
