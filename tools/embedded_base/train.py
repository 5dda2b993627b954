"""Trains the embedded base.

    python -m tools.embedded_base.train DATA OUT [--recipe FILE] [--set train.steps=2000 …] [--minutes 9]

DATA is a folder that `pack` wrote. OUT gets `checkpoint.pt` (replaced as the run goes on, and when the minutes are up),
`log.jsonl`, and at the end `model/` in bfloat16. Run again, it goes on from the checkpoint to the same result.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from tools.embedded_base.batches import Sources, batches, boundaries
from tools.embedded_base.model import build, quantise, unquantise
from tools.embedded_base.muon import Muon
from tools.embedded_base.sources import RECIPE, load_recipe

PATIENCE = 120
"""Seconds between checkpoints."""
NOT_MODERN = ("literature", "support", "facts", "factbook")
"""Sources left out of the figure for modern text."""


def shape_rate(step: int, steps: int, warmup: int, decay: float) -> float:
    """Warm-up, plateau, and a fall to zero as 1 − √x over the last `decay` share (Hägele et al., 2024)."""
    start = steps * (1 - decay)
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 if step < start else 1 - math.sqrt((step - start) / (steps - start))


def optimisers(model: PreTrainedModel, settings: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers and AdamW for the rest, or AdamW for all."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    known = {id(p) for p in matrices}
    tables = [p for p in model.parameters() if p.ndim == 2 and id(p) not in known]
    scales = [p for p in model.parameters() if p.ndim < 2]
    rate, decay = settings["rate"], settings["weight_decay"]
    fused = next(model.parameters()).is_cuda
    groups = [{"params": tables, "weight_decay": decay}, {"params": scales, "weight_decay": 0.0}]
    if settings["optimiser"] == "muon":
        return [
            Muon(matrices, lr=rate, weight_decay=decay),
            torch.optim.AdamW(groups, lr=settings.get("table_rate", rate), betas=(0.9, 0.95), fused=fused),
        ]
    groups[0]["params"] = [*matrices, *tables]
    return [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=fused)]


class Run:
    """One training run and what it needs to be resumed."""

    def __init__(self, data: Path, out: Path, recipe: dict[str, Any], device: torch.device):
        self.data, self.out, self.recipe, self.device = data, out, recipe, device
        self.settings = recipe["train"]
        torch.manual_seed(recipe["seed"])
        self.model = build(recipe["model"], recipe["tokenizer"]["vocabulary"], self.settings["context"]).to(device)
        self.optimisers = optimisers(self.model, self.settings)
        self.rates = [[group["lr"] for group in o.param_groups] for o in self.optimisers]
        self.step, self.seconds = 0, 0.0
        sources = recipe["sources"]
        self.sources = Sources(data, *({n: s[key] for n, s in sources.items()} for key in ("weight", "end")))
        if (out / "checkpoint.pt").exists():
            self._load()

    def train(self, minutes: float | None, every: int = 200) -> bool:
        """Trains to the end, or until the minutes are up; returns whether it is done."""
        s, steps = self.settings, self.settings["steps"]
        quantise_at = int(steps * s["quantise_from"])
        if self.step > quantise_at:
            quantise(self.model)
        compiled = self._compile()
        began = saved = time.monotonic()
        before, losses = self.seconds, []
        decay_from, left = int(steps * (1 - s["decay"])), range(self.step, steps)
        stream = batches(self.sources, self.recipe["seed"], left, s["rows"], s["context"], decay_from, steps)
        for step, tokens, starts in stream:
            if step == quantise_at:
                quantise(self.model)
                compiled = self._compile()
            losses.append(self._advance(compiled, step, tokens, starts))
            self.step, self.seconds = step + 1, before + time.monotonic() - began
            if self.step % every == 0 or self.step == steps:
                self._log(torch.stack(losses).mean().item())
                losses.clear()
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                break
            if time.monotonic() - saved > PATIENCE:
                saved = time.monotonic()
                self._save()
        self._save()
        return self.step == steps

    def evaluate(self, rows: int = 32, limit: int = 400_000) -> dict[str, float]:
        """Bits per byte of each source's held-out text, and `modern`, their mean weighted by bytes."""
        sizes = json.loads((self.data / "bytes.json").read_text())
        found, nats, total = {}, 0.0, 0
        for name in self.recipe["sources"]:
            tokens = np.fromfile(self.data / f"{name}.heldout.bin", dtype=np.uint16).astype(np.int64)
            if not len(tokens):
                continue  # a source of few documents may have none held out
            bytes_ = sizes[f"{name}.heldout"] * min(1, limit / len(tokens))
            loss = self._held_out(np.concatenate([[0], tokens[:limit]]), rows)
            found[name] = loss / bytes_ / math.log(2)
            if name not in NOT_MODERN:
                nats, total = nats + loss, total + bytes_
        return {"modern": nats / total / math.log(2), **found}

    @torch.no_grad()
    def _held_out(self, tokens: np.ndarray, rows: int) -> float:
        context, total = self.settings["context"], 0.0
        self.model.eval()
        for at in range(0, len(tokens) - 1, rows * context):
            piece = tokens[at : at + rows * context + 1]
            inputs, labels = np.zeros(rows * context, np.int64), np.full(rows * context, -100)
            inputs[: len(piece) - 1], labels[: len(piece) - 1] = piece[:-1], piece[1:]
            grid = inputs.reshape(rows, context)
            starts = torch.from_numpy(boundaries(grid)).to(self.device)
            logits = self._forward(self.model, torch.from_numpy(grid).to(self.device), starts)
            targets = torch.from_numpy(labels).to(self.device)
            total += F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="sum").item()
        self.model.train()
        return total

    def _advance(self, compiled: Any, step: int, tokens: Tensor, starts: Tensor) -> Tensor:
        s = self.settings
        tokens = tokens.to(self.device, non_blocking=True)
        starts = starts.to(self.device, non_blocking=True) if s["mask_documents"] else None
        logits = self._forward(compiled, tokens[:, :-1], starts)
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        shape = shape_rate(step, s["steps"], s["warmup"], s["decay"])
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * shape
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    def _forward(self, model: Any, tokens: Tensor, starts: Tensor | None) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return model(input_ids=tokens, use_cache=False, starts=starts).logits

    def _compile(self) -> Any:
        return torch.compile(self.model) if self.device.type == "cuda" else self.model

    def _log(self, loss: float) -> None:
        tokens = self.step * self.settings["rows"] * self.settings["context"]
        line = {"step": self.step, "loss": round(loss, 4), "tokens": tokens, "seconds": round(self.seconds, 1)}
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(line, flush=True)

    def _weights(self) -> dict[str, Tensor]:
        names = {n.replace(".parametrizations.weight.original", ".weight"): p for n, p in self.model.named_parameters()}
        return {name: p.detach() for name, p in names.items()}

    def _save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "weights": self._weights(),
            "optimisers": [o.state_dict() for o in self.optimisers],
        }
        torch.save(state, self.out / "checkpoint.tmp")
        (self.out / "checkpoint.tmp").replace(self.out / "checkpoint.pt")

    def _load(self) -> None:
        state = torch.load(self.out / "checkpoint.pt", map_location=self.device, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["weights"], strict=False)
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)


def override(recipe: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Sets `table.key=value` in the recipe; a value is read as TOML."""
    import tomllib

    for setting in settings:
        path, _, value = setting.partition("=")
        *tables, key = path.split(".")
        place = recipe
        for table in tables:
            place = place[table]
        place[key] = tomllib.loads(f"value = {value}")["value"]
    return recipe


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--minutes", type=float, help="stop after so long, checkpointed")
    options = parser.parse_args(arguments)
    recipe = override(load_recipe(options.recipe), options.set)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(options.data, options.out, recipe, device)
    if not run.train(options.minutes):
        print(f"stopped at step {run.step}: run the same command to go on")
        return
    found = {"float": run.evaluate()}
    if recipe["train"]["quantise_from"] >= 1:
        quantise(run.model)
        found["nf4"] = run.evaluate()
    else:
        found = {"nf4": found["float"]}
        unquantise(run.model)
        found["float"] = run.evaluate()
        quantise(run.model)
    unquantise(run.model)
    tokens = run.step * recipe["train"]["rows"] * recipe["train"]["context"]
    found |= {"recipe": recipe, "tokens": tokens, "seconds": run.seconds}
    (options.out / "result.json").write_text(json.dumps(found, indent=2))
    print({key: {k: round(v, 4) for k, v in found[key].items()} for key in ("float", "nf4")})
    run.model.to(torch.bfloat16).save_pretrained(options.out / "model")


if __name__ == "__main__":
    main()
