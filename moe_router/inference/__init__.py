"""Routed inference: `Router` for most uses, `Conversation` for several turns, `Engine` below both."""

from moe_router.inference.conversation import Conversation
from moe_router.inference.requests import EngineConfig
from moe_router.inference.router import Answer, Router, Stream, Usage
from moe_router.inference.routing import Route

__all__ = ["Answer", "Conversation", "EngineConfig", "Route", "Router", "Stream", "Usage"]
