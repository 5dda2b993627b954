"""Routed inference: `Router` for most uses, `Engine` below it."""

from moe_router.inference.router import Answer, Router, Usage
from moe_router.inference.routing import Route

__all__ = ["Answer", "Route", "Router", "Usage"]
