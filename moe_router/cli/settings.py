"""Flags for the settings in config.py: names, types, help and defaults are all read from the dataclasses."""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from moe_router.config import Config, field_help

SEED = "seed"
"""One --seed sets the seed of every section a command uses."""


class OrAuto(click.ParamType):
    """A number, or the word `auto` for the one that a setting reserves."""

    name = "integer or auto"

    def __init__(self, auto: int) -> None:
        self.auto = auto

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return self.auto if value == "auto" else click.INT.convert(value, param, ctx)


@dataclass(frozen=True)
class Setting:
    """One flag and the settings it sets."""

    flag: str
    name: str
    """Of the flag's value among a command's arguments."""
    targets: tuple[tuple[str, str], ...]
    """(section, key) pairs."""
    kind: type | click.ParamType
    help: str

    def option(self) -> Callable[[Any], Any]:
        """The click option; left out, its value is None and moe-router.toml decides."""
        declaration = f"{self.flag}/--no-{self.flag[2:]}" if self.kind is bool else self.flag
        return click.option(declaration, self.name, type=self.kind, default=None, help=self.help)


def settings_of(sections: Iterable[str]) -> list[Setting]:
    """Flags for whole sections (`experts`) and single keys (`data.template`), in the order given."""
    pairs = [pair for section in sections for pair in _pairs(section)]
    seeds = tuple(pair for pair in pairs if pair[1] == SEED)
    settings = [_setting(flag_of(*pair), (pair,)) for pair in pairs if pair not in seeds]
    return [*settings, _setting(f"--{SEED}", seeds)] if seeds else settings


def flag_of(section: str, key: str) -> str:
    """`--key`, the same in every command; with the section before it where two sections have that key."""
    if (section, key) == ("base", "model"):
        return "--base"
    counts = Counter(field.name for part in dataclasses.fields(Config) for field in dataclasses.fields(_class(part.name)))
    name = f"{section}-{key}" if counts[key] > 1 else key
    return f"--{name.replace('_', '-')}"


def overrides(settings: Iterable[Setting], values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The flags that were given, in the form that `Config.override` takes."""
    tables: dict[str, dict[str, Any]] = {}
    for setting in settings:
        if values[setting.name] is not None:
            for section, key in setting.targets:
                tables.setdefault(section, {})[key] = values[setting.name]
    return tables


def _pairs(section: str) -> list[tuple[str, str]]:
    name, _, key = section.partition(".")
    return [(name, field.name) for field in dataclasses.fields(_class(name)) if key in ("", field.name)]


def _setting(flag: str, targets: tuple[tuple[str, str], ...]) -> Setting:
    section, key = targets[0]
    home = _class(section)
    text = field_help(home)[key] if len(targets) == 1 else "Seed of every random choice made here."
    field = next(field for field in dataclasses.fields(home) if field.name == key)
    default, kind = field.default, typing.get_type_hints(home)[key]
    kind = OrAuto(field.metadata["auto"]) if "auto" in field.metadata else kind
    shown = {True: "yes", False: "no", "": "none"}.get(default, default) if isinstance(default, (bool, str)) else f"{default:g}"
    return Setting(flag, f"{section}__{key}", targets, kind, f"{text} [default: {shown}]")


def _class(section: str) -> type:
    return typing.get_type_hints(Config)[section]
