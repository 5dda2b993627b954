"""How the engine adds each row's mixture of adapters to a layer: fewer and larger products than training uses.

Layers that read the same input (q, k, v; gate, up) share one product with their A factors, the products with B are added
into the base's output in place, and a mixture is a handful of small tensors that can be overwritten between two replays of
a CUDA graph. No gradients: training has `SlotRoute`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F

from moe_router.experts.adapters import WIDE_RATIO, GatedLinear, RoutedModel
from moe_router.experts.together import siblings
from moe_router.inference.requests import GRAIN, Mixture
from moe_router.kernels import plain

ALIGNED = 8
"""Slots are padded to multiples of it, since GPU matrix products are slow on rows that are not 16-byte aligned."""

SHARED_READS = 2
"""How often a slot must be read at a fused decode step for the wide form, which reads each slot once, to be chosen."""


class Group:
    """Layers that read the same input, their A factors side by side in one tensor.

    `A` is (members · S, d_in) with S the slots, null slot and padding included; `B` of each layer is (S, d_out).
    """

    @torch.no_grad()
    def __init__(self, layers: Sequence[GatedLinear]) -> None:
        self.layers = tuple(layers)
        self.slots = -(-len(layers[0].A) // ALIGNED) * ALIGNED
        self.A = torch.cat([self._moved(layer, "A") for layer in layers])
        self.B = [self._moved(layer, "B") for layer in layers]
        for layer, a, b in zip(layers, self.A.split(self.slots), self.B, strict=True):
            layer.A.data, layer.B.data = a[: len(layer.A)], b[: len(layer.B)]

    @property
    def numbers(self) -> int:
        """Numbers in one slot of all factors."""
        return sum(layer.A.shape[1] + layer.B.shape[1] for layer in self.layers)

    def _moved(self, layer: GatedLinear, name: str) -> torch.Tensor:
        factor = getattr(layer, name).data
        return F.pad(factor, (0, 0, 0, self.slots - len(factor)))


class Groups:
    """All adapters of a model as the engine reads them. The layers' own factors become views of these tensors."""

    def __init__(self, model: RoutedModel, kernels: ModuleType = plain) -> None:
        self.model, self.kernels = model, kernels
        self._place: dict[GatedLinear, tuple[Group, int]] = {}
        for paths in siblings(list(model.layers)):
            group = Group([model.layers[path] for path in paths])
            self._place |= {layer: (group, member) for member, layer in enumerate(group.layers)}
        self.refresh()

    @property
    def slots(self) -> int:
        """S: slots of every layer, the null slot and padding included."""
        return next(iter(self._place.values()))[0].slots

    def __iter__(self) -> Iterator[Group]:
        return iter(dict.fromkeys(group for group, _ in self._place.values()))

    def of(self, layer: GatedLinear) -> tuple[Group, int]:
        """The layer's group, and which member of it the layer is."""
        return self._place[layer]

    def refresh(self) -> None:
        """After factors were changed in place: look again whether all of them are finite."""
        finite = [f.isfinite().all() for layer in self._place for f in (layer.A, layer.B)]
        self.finite = bool(torch.stack(finite).all())


@dataclass(frozen=True)
class Plan:
    """The mixtures of a batch on the host: which form, and what it needs."""

    gates: torch.Tensor
    """(rows, K) or, in the wide form, (rows, R)."""
    slots: torch.Tensor | None
    """(rows, K), None in the wide form."""

    @property
    def key(self) -> tuple[str, int]:
        """Plans of the same key fit the same Mix."""
        return ("wide" if self.slots is None else "gathered", self.gates.shape[1])


def plan(groups: Groups, mixtures: Sequence[Mixture], form: str = "auto", decode: bool = True) -> Plan | None:
    """Choose the form for a batch; None where no row uses any adapter. `form` is `wide`, `gathered` or `auto`.

    The wide form multiplies every row with every expert, so that it needs all factors to be finite. It is chosen where every
    row needs most slots; with the fused kernels, which at a decode step are bound by the memory that they read, also where
    the rows together read each slot several times.
    """
    model = groups.model
    weights = np.array([mixture[:-1] for mixture in mixtures], dtype=np.float32).reshape(len(mixtures), -1) / GRAIN
    gates = model.gates(weights, np.array([float(mixture[-1]) for mixture in mixtures]))
    most = int((gates != 0).sum(1).max()) if gates.numel() else 0
    if most == 0:
        return None
    reads = most * WIDE_RATIO
    if decode and groups.kernels.FUSED:
        reads = max(reads, len(mixtures) * most / SHARED_READS)
    if groups.finite and (form == "wide" or (form == "auto" and model.layout.total <= reads)):
        return Plan(gates, None)
    slots, gates = model.select(gates, -(-most // ALIGNED) * ALIGNED)
    return Plan(gates, slots)


class Mix:
    """A plan on the device, for up to `rows` rows; loading another plan of the same key overwrites it."""

    def __init__(self, groups: Groups, plan: Plan, rows: int) -> None:
        base = groups.model.base
        self.groups, self.wide = groups, plan.slots is None
        self.null = groups.model.layout.total
        width = groups.slots if self.wide else plan.gates.shape[1]
        self._gates = torch.zeros(rows, width, device=base.device, dtype=base.dtype)
        self._slots = torch.full((rows, width), self.null, device=base.device)
        self._seen: tuple[Group, torch.Tensor, torch.Tensor] | None = None
        self.load(plan)

    def load(self, plan: Plan) -> None:
        """Rows beyond the plan's use no adapter."""
        rows, width = plan.gates.shape
        self._gates.zero_()
        self._gates[:rows, :width].copy_(plan.gates)
        if plan.slots is not None:
            self._slots.fill_(self.null)
            self._slots[:rows].copy_(plan.slots)

    def output(self, layer: GatedLinear, x: torch.Tensor) -> torch.Tensor:
        """As Mixing says."""
        group, member = self.groups.of(layer)
        if self._seen is None or self._seen[0] is not group or self._seen[1] is not x:
            self._seen = (group, x, self._hidden(group, x))
        y, hidden = layer.base(x), self._seen[2][:, :, member : member + 1]
        if member == len(group.layers) - 1:
            self._seen = None
        self._add([y], hidden, [group.B[member]])
        return y

    def outputs(self, layers: Sequence[GatedLinear], x: torch.Tensor) -> list[torch.Tensor]:
        """Of layers that read the same input, all at once. While a graph is captured, A's products run beside the base's."""
        group, _ = self.groups.of(layers[0])
        if group.layers != tuple(layers):
            return [self.output(layer, x) for layer in layers]
        hidden, ready = beside(lambda: self._hidden(group, x))
        ys = [layer.base(x) for layer in layers]
        ready()
        self._add(ys, hidden, group.B)
        return ys

    def _hidden(self, group: Group, x: torch.Tensor) -> torch.Tensor:
        """Gated products with the A factors of all members: (rows, seq, members, K)."""
        members = len(group.layers)
        if self.wide:
            return self.groups.kernels.shrink_all(x, group.A, self._gates, members)
        return self.groups.kernels.shrink(x, group.A, self._slots, self._gates, members)

    def _add(self, ys: Sequence[torch.Tensor], hidden: torch.Tensor, factors: Sequence[torch.Tensor]) -> None:
        """ys (rows, seq, d_out) and their hidden (rows, seq, members, K)."""
        if self.wide:
            self.groups.kernels.expand_all(ys, hidden, factors)
        else:
            self.groups.kernels.expand(ys, hidden, factors, self._slots)


@functools.cache
def _side(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def beside(work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
    """Do `work` on a stream of its own where a CUDA graph is being captured; its result may be used after the second."""
    if not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing():
        return work(), lambda: None
    main, side = torch.cuda.current_stream(), _side(torch.cuda.current_device())
    side.wait_stream(main)
    with torch.cuda.stream(side):
        found = work()
    return found, lambda: main.wait_stream(side)
