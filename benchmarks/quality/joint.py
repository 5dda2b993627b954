"""Trains all experts of a mixture together under any row weights, as CUDA graphs where there is a GPU.

The product's trainer gives every expert its own optimiser and takes one-hot rows. Experiments also want rows that train
several experts at once, and many short runs on one GPU, whose host needs ten times longer to launch a step of the embedded
base than the GPU to compute it. So all factors lie in one flat buffer, batches have a few fixed widths, and one graph of
each width holds the whole step: forward, backward and Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from moe_router.experts.adapters import SHARED, GatedLinear, Mixing, RankLayout, RoutedModel, SlotRoute
from moe_router.experts.base import Base
from moe_router.experts.encode import IGNORE, Example

BETAS = (0.9, 0.99)
WIDTHS = (32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Tokens of a row; a batch takes the first that holds its longest record."""


@dataclass(frozen=True)
class Shape:
    """Ranks and rates of a mixture; one expert alone with `shared` 0 is a dense adapter."""

    ranks: tuple[int, ...]
    """Of the routed experts."""
    shared: int
    rate: float
    shared_rate: float
    rows: int
    """Records a training step."""
    rows_scored: int = 64
    decay: float = 0.0
    """Decoupled weight decay of the routed experts."""
    up_ratio: float = 1.0
    """Rate of B over that of A (LoRA+, Hayou et al. 2024)."""
    rslora: bool = False
    dropout: float = 0.0
    """Of the adapters' input, in training."""


@dataclass(frozen=True)
class Dropped:
    """The mixtures of a batch in training, the adapters' input with dropout; all slots are computed."""

    gates: torch.Tensor  # (rows, 1, R)
    rate: float

    def output(self, layer: GatedLinear, x: torch.Tensor) -> torch.Tensor:
        """*Shape:* (rows, seq, d_in) → (rows, seq, d_out)."""
        y = layer.base(x)
        a, b = layer.A[:-1].to(x.dtype), layer.B[:-1].to(x.dtype)
        return y + (F.linear(F.dropout(x, self.rate), a) * self.gates) @ b


class Joint:
    """A mixture in training."""

    def __init__(self, base: Base, shape: Shape, alpha: float = 16.0, seed: int = 0) -> None:
        names = tuple(f"expert{i}" for i in range(len(shape.ranks)))
        layout = RankLayout(names, shape.ranks, shape.shared)
        power = 0.5 if shape.rslora else 1.0
        ranks = dict(zip(names, shape.ranks, strict=True)) | {SHARED: max(shape.shared, 1)}
        self.base, self.shape = base, shape
        self.model = RoutedModel(base, layout, {n: alpha / r**power for n, r in ranks.items()}, dtype=torch.float32)
        owner = torch.full((layout.total + 1,), -2)  # of each slot: -1 shared, -2 the null slot, else the expert
        for index, name in enumerate(names):
            owner[layout.slots[name]] = index
        owner[: shape.shared] = -1
        self.owner = owner
        device = base.device
        rates = torch.where(owner == -1, shape.shared_rate, shape.rate) * (owner != -2)
        self.rates, self.decays = rates.to(device), (shape.decay * (owner >= 0)).to(device)
        self.share = torch.zeros((), device=device)
        self.active = torch.zeros(layout.total + 1, device=device)
        self.loss = torch.zeros((), device=device)
        self._flatten(seed)
        self._graphs: dict[tuple[str, int], tuple[Inputs, torch.cuda.CUDAGraph | None]] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None

    def _flatten(self, seed: int) -> None:
        """All factors in one buffer with one gradient buffer; `slot` names the slot of every element."""
        draw = torch.Generator().manual_seed(seed)
        pieces, slots, ratios, views = [], [], [], []
        for layer in self.model.layers.values():
            bound = layer.A.shape[1] ** -0.5
            a = torch.empty(layer.A.shape).uniform_(-bound, bound, generator=draw)
            a[-1] = 0
            for parameter, value, ratio in ((layer.A, a, 1.0), (layer.B, torch.zeros(layer.B.shape), self.shape.up_ratio)):
                views.append(parameter)
                pieces.append(value.flatten())
                slots.append(torch.arange(len(value)).repeat_interleave(value.shape[1]))
                ratios.append(torch.full((value.numel(),), ratio))
        device = self.base.device
        self.flat, self.slot = torch.cat(pieces).to(device), torch.cat(slots).to(device)
        self.ratio = torch.cat(ratios).to(device) if self.shape.up_ratio != 1 else None
        self.grad, self.m, self.v = (torch.zeros_like(self.flat) for _ in range(3))
        self.steps = torch.zeros(self.model.layout.total + 1, device=device)
        at = 0
        for parameter in views:
            end = at + parameter.numel()
            parameter.data = self.flat[at:end].view(parameter.shape)
            parameter.grad = self.grad[at:end].view(parameter.shape)
            at = end

    def step(self, examples: Sequence[Example], weights: np.ndarray, share: float) -> torch.Tensor:
        """One update on one example a row; `weights` (rows, experts), `share` of the peak rates. Returns the mean loss."""
        used = torch.from_numpy((weights != 0).any(0))
        active = torch.cat([used, torch.tensor([False, True])])[self.owner]  # -1, the last, is the shared expert
        self.active.copy_(active.float())
        self.share.fill_(share)
        inputs = self._run("train", examples, weights)
        return inputs.loss.clone()

    @torch.no_grad()
    def nats(self, examples: Sequence[Example], weights: np.ndarray) -> np.ndarray:
        """Summed loss of each example's response under its own weights (examples, experts): (examples,)."""
        order = np.argsort([len(example.tokens) for example in examples], kind="stable")
        found = np.zeros(len(examples))
        rows = self.shape.rows_scored
        kept = []
        for at in range(0, len(order), rows):
            part = order[at : at + rows]
            inputs = self._run("score", [examples[i] for i in part], weights[part])
            kept.append((part, inputs.nats[: len(part)].clone()))
        for part, nats in kept:
            found[part] = nats.double().cpu().numpy()
        return found

    def _run(self, kind: str, examples: Sequence[Example], weights: np.ndarray) -> Inputs:
        longest = max(len(example.tokens) for example in examples)
        width = next(width for width in WIDTHS if width >= longest)
        if (kind, width) not in self._graphs:
            self._graphs[kind, width] = self._capture(kind, width)
        inputs, graph = self._graphs[kind, width]
        inputs.fill(examples, self.model.gates(weights))
        if graph is None:
            self._body(kind, inputs)()
        else:
            graph.replay()
        return inputs

    def _capture(self, kind: str, width: int) -> tuple[Inputs, torch.cuda.CUDAGraph | None]:
        """Inputs of a width and the graph over them; without a GPU no graph. Leaves the training's state as it was."""
        rows = self.shape.rows if kind == "train" else self.shape.rows_scored
        inputs = Inputs(rows, width, self.model.layout.total, self.base)
        if self._pool is None:
            return inputs, None
        state = (self.flat, self.grad, self.m, self.v, self.steps)
        before = [tensor.clone() for tensor in state]
        graph, body = torch.cuda.CUDAGraph(), self._body(kind, inputs)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            body()
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            body()
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        return inputs, graph

    def _body(self, kind: str, inputs: Inputs) -> Callable[[], None]:
        def score() -> None:
            with torch.no_grad():
                inputs.nats.copy_(self._losses(inputs, SlotRoute(None, inputs.gates, every=True)).sum(1))

        def train() -> None:
            dropped = Dropped(inputs.gates, self.shape.dropout)
            loss = self._losses(inputs, dropped).sum() / (inputs.labels != IGNORE).sum()
            loss.backward()
            inputs.loss.copy_(loss.detach())
            self._adam()

        return train if kind == "train" else score

    def _losses(self, inputs: Inputs, route: Mixing) -> torch.Tensor:
        """Loss of every position, 0 where it has no label: (rows, width). Padding on the right needs no mask."""
        with self.model.routed(route):
            logits = self.base.model(input_ids=inputs.tokens, use_cache=False).logits
        flat = F.cross_entropy(logits.flatten(0, 1).float(), inputs.labels.flatten(), ignore_index=IGNORE, reduction="none")
        return flat.view(inputs.labels.shape)

    @torch.no_grad()
    def _adam(self) -> None:
        """Adam in which a slot without a row in the batch stands still."""
        on = self.active
        self.steps += on
        first, second = (1 - (1 - beta) * on for beta in BETAS)
        self.m.mul_(first[self.slot]).add_(self.grad * ((1 - BETAS[0]) * on)[self.slot])
        self.v.mul_(second[self.slot]).add_(self.grad.square() * ((1 - BETAS[1]) * on)[self.slot])
        rates = self.rates * self.share * on
        size = (rates / (1 - BETAS[0] ** self.steps).clamp_min(1e-8))[self.slot]
        root = (self.v / (1 - BETAS[1] ** self.steps).clamp_min(1e-8)[self.slot]).sqrt_()
        if self.ratio is not None:
            size = size * self.ratio
        if self.shape.decay:
            self.flat.mul_(1 - (rates * self.decays)[self.slot])
        self.flat.sub_(size * self.m / (root + 1e-8))
        self.grad.zero_()


class Inputs:
    """What a step reads and writes, at fixed places."""

    def __init__(self, rows: int, width: int, slots: int, base: Base) -> None:
        device = base.device
        self.eos = base.eos
        self.tokens = torch.full((rows, width), base.eos, device=device)
        self.labels = torch.zeros((rows, width), dtype=torch.int64, device=device)
        self.gates = torch.zeros((rows, 1, slots), dtype=base.dtype, device=device)
        self.nats = torch.zeros(rows, device=device)
        self.loss = torch.zeros((), device=device)

    def fill(self, examples: Sequence[Example], gates: torch.Tensor) -> None:
        """One example a row; rows left over have no label. *Shape:* gates (examples, slots)."""
        tokens = np.full(self.tokens.shape, self.eos, dtype=np.int64)
        labels = np.full(self.tokens.shape, IGNORE, dtype=np.int64)
        for row, example in enumerate(examples):
            end, start = len(example.tokens), example.prompt_tokens
            tokens[row, :end] = example.tokens
            labels[row, start - 1 : end - 1] = example.tokens[start:]
        self.tokens.copy_(torch.from_numpy(tokens))
        self.labels.copy_(torch.from_numpy(labels))
        self.gates[: len(examples), 0].copy_(gates)
