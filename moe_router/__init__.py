"""moe-router: a mixture of QLoRA experts over one 4-bit base, from a company's raw exports."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_router.config import Config
    from moe_router.errors import MoeRouterError
    from moe_router.inference import Router
    from moe_router.workspace import Workspace

    __version__: str

__all__ = ["Config", "MoeRouterError", "Router", "Workspace", "__version__"]

_HOMES = {
    "Config": "moe_router.config",
    "MoeRouterError": "moe_router.errors",
    "Router": "moe_router.inference",
    "Workspace": "moe_router.workspace",
}


def __getattr__(name: str) -> Any:
    """Public names load their module on first use, so that importing the package stays quick."""
    if name == "__version__":
        value = _version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("moe-router")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"
