"""A small training in a process of its own, to be killed: forked from a server that has imported everything already."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from moe_router.config import Config
from moe_router.data.records import Record
from moe_router.experts.train import Plan, Split, train_library
from moe_router.experts.trainer import Trainer


def start(root: Path, base: Path, **settings: object) -> tuple[multiprocessing.Process, Connection]:
    """The process, and a connection that it sends the number of every step through that it has taken."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed", "peft", "transformers.models.llama.modeling_llama", "bitsandbytes"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(root, base, settings, theirs))
    process.start()
    theirs.close()
    return process, ours


def _train(root: Path, base: Path, settings: dict[str, object], steps: Connection) -> None:
    torch.set_num_threads(1)
    records = [Record(f"r{i}", f"question number {i} of {i % 3}?", f"answer {i % 7} é", split="train") for i in range(60)]
    labels = np.arange(60) % 3
    train, tune = Split(records[:48], labels[:48], np.zeros((48, 2))), Split(records[48:], labels[48:], np.zeros((12, 2)))
    config = Config().override({"base": {"model": str(base), "quantization": "none", "dtype": "float32"}, "experts": settings})
    step = Trainer.train_step

    def told(self: Trainer) -> int:
        done = step(self)
        steps.send(self.step)
        return done

    Trainer.train_step = told
    train_library(
        root / "library", Plan(("a", "b", "c"), train, tune, config, "data"), root / "checkpoints" / "run.safetensors"
    )
