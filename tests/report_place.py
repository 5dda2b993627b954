"""A workspace of true experts and a true gate over a tiny base, made in seconds."""

from pathlib import Path

from models import tiny_llama

from moe_router.config import Config
from moe_router.data.prepare import prepare
from moe_router.data.sample import write_sample
from moe_router.data.slices import slice_records
from moe_router.experts.base import load_base
from moe_router.experts.train import train_experts
from moe_router.gate.train import train_gate
from moe_router.workspace import Workspace

SETTINGS = {
    "data": {"limit": 120},
    "slice": {"k": 2},
    "experts": {"epochs": 0.25, "rank": 2, "shared_rank": 2, "search_rates": False},
    "report": {"bootstrap": 50, "examples": 2},
}


def make_place(folder: Path, settings: dict[str, dict] | None = None):
    """The workspace, its settings (SETTINGS, and those given over them), and its base."""
    base = {"model": str(tiny_llama(folder / "base")), "quantization": "none", "dtype": "float32"}
    config = Config().override(SETTINGS | {"base": base}).override(settings or {})
    workspace = Workspace.find(folder / "workspace")
    workspace.root.mkdir()
    workspace.config.write_text(config.to_toml(), encoding="utf-8")
    prepare(workspace, write_sample(workspace.sample), config)
    slice_records(workspace, config)
    opened = load_base(config.base)
    train_experts(workspace, config, base=opened)
    train_gate(workspace, config)
    return workspace, config, opened
