"""Which of a base's layers get adapters."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields

from torch import nn

from moe_router.errors import ConfigError, LibraryError
from moe_router.experts.base import Base

ALL = "all"
ATTENTION = "attention"
ATTENTION_NAMES = ("attn", "attention")


@dataclass(frozen=True)
class Targeted(Base):
    """A base of which only some layers get adapters; the model itself is the same object."""

    paths: frozenset[str] = frozenset()

    def linears(self) -> dict[str, nn.Module]:
        """The targeted ones of the base's linear layers, by module path."""
        return {path: layer for path, layer in super().linears().items() if path in self.paths}


def targeted(base: Base, targets: str) -> Base:
    """`base` with adapters on the layers that `targets` names: `all`, `attention`, or ends of module paths, comma-separated.

    Raises ConfigError naming an end that no linear layer has.
    """
    if targets.strip() == ALL:
        return base
    linears = base.linears()
    if targets.strip() == ATTENTION:
        chosen = {path for path in linears if any(word in path.rpartition(".")[0] for word in ATTENTION_NAMES)}
        if not chosen:
            raise ConfigError(f"experts.targets = 'attention': base {base.id!r} has no layers of that name; name them")
        return restricted(base, chosen)
    chosen = set()
    for end in (part.strip() for part in targets.split(",") if part.strip()):
        found = {path for path in linears if path == end or path.endswith(f".{end}")}
        if not found:
            ends = sorted({path.rpartition(".")[2] for path in linears})
            raise ConfigError(
                f"experts.targets: no linear layer of base {base.id!r} is called {end!r}; there are {', '.join(ends)}"
            )
        chosen |= found
    return restricted(base, chosen)


def restricted(base: Base, paths: Collection[str]) -> Base:
    """`base` with adapters on exactly these layers. Raises LibraryError when it lacks one of them."""
    linears = base.linears()
    missing = sorted(set(paths) - linears.keys())
    if missing:
        raise LibraryError(f"base {base.id!r} has no linear layer {missing[0]}: the adapters were made for another base")
    if len(paths) == len(linears):
        return base
    shared = {field.name: getattr(base, field.name) for field in fields(Base)}
    return Targeted(**shared, paths=frozenset(paths))
