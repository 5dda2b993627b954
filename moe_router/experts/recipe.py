"""Recipes: settings by the name of the machine they suit. The package's own lie in `recipes/`; `init` copies them."""

from __future__ import annotations

import tomllib
from pathlib import Path

from moe_router.config import Config
from moe_router.errors import ConfigError

FOLDER = Path(__file__).parent / "recipes"
DEFAULT = "default"
"""The recipe that is written out from config.py: every setting with its help."""


def names() -> tuple[str, ...]:
    """The package's recipes, `default` first."""
    return (DEFAULT, *sorted(path.stem for path in FOLDER.glob("*.toml")))


def text(name: str) -> str:
    """A recipe of the package as TOML. Raises ConfigError for an unknown name."""
    if name == DEFAULT:
        block = next(part for part in Config().to_toml().split("\n\n") if "\n[experts]\n" in part)
        return block.rstrip("\n") + "\n"
    if name not in names():
        raise ConfigError(f"unknown recipe {name!r}: use one of {', '.join(names())}")
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def recipe(name: str, folder: Path | None = None, config: Config | None = None) -> Config:
    """`config` (default: the defaults) with a recipe's settings: of `<folder>/<name>.toml` if it is there, else the package's.

    Raises ConfigError for an unknown name, or naming the file and key that are wrong.
    """
    own = folder / f"{name}.toml" if folder else None
    source = own if own and own.exists() else None
    if source is None and name not in names():
        also = sorted({*names(), *(path.stem for path in folder.glob("*.toml"))}) if folder and folder.is_dir() else names()
        raise ConfigError(f"unknown recipe {name!r}: use one of {', '.join(also)}")
    try:
        tables = tomllib.loads(source.read_text(encoding="utf-8") if source else text(name))
        return (config or Config()).override(tables)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{source or f'recipe {name}'}: {error}") from error
