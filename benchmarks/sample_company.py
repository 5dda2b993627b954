"""The sample company, prepared and sliced under the demo's settings: what experiments on it start from."""

from __future__ import annotations

from pathlib import Path

from moe_router.config import Config
from moe_router.data.prepare import prepare
from moe_router.data.sample import write_sample
from moe_router.data.slices import slice_records
from moe_router.demo import demo_config
from moe_router.experts.base import Base, load_base
from moe_router.experts.train import Plan, Split
from moe_router.workspace import Workspace


def open_sample(folder: str | Path, seed: int) -> tuple[Workspace, Base, Plan]:
    """The workspace, the base, and the plan of the mixture that the demo trains."""
    config, workspace = demo_config("quick"), Workspace.find(folder)
    prepare(workspace, write_sample(workspace.sample, seed), config)
    slices = slice_records(workspace, config)
    train, tune = (Split.of(workspace, slices, split) for split in ("train", "tune"))
    return workspace, load_base(config.base), Plan(slices.names, train, tune, config, slices.digest)


def with_experts(config: Config, **values: object) -> Config:
    """The settings with these of the experts changed."""
    return config.override({"experts": values})
