"""Adapters of a decoding batch on the CPU: every row's own factors side by side, picked when its mixture changes.

A step reads one token a row, so that what an adapter costs is the calls, not the numbers; and calls in fp32 are cheap where
those in bfloat16 go through a library that spends 15 µs on each (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moe_router.experts.adapters import GatedLinear, Mixing
from moe_router.inference.mixing import Group, Groups, Plan
from moe_router.inference.requests import Mixture

LIMIT = 256 << 20
"""Bytes that a table may take; larger models pick their factors anew in every step."""


@dataclass
class _Factors:
    """One group's factors of every row, gates included, in fp32."""

    down: torch.Tensor  # (rows, d_in, members · K)
    up: list[torch.Tensor]  # (rows, K, d_out) for each member


class RowTable:
    """The factors that each slot's row uses; a row that stays costs nothing, one that joins is picked once."""

    def __init__(self, groups: Groups, rows: int) -> None:
        self.groups, self.rows = groups, rows
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self._held: list[Mixture | None] = [None] * self.rows
        self._factors: dict[Group, _Factors] = {}
        self._count = 0
        self._last: tuple[int, Sequence[Mixture], Mixing] | None = None

    def mix(self, mixtures: Sequence[Mixture], first: int, plan: Plan) -> Mixing | None:
        """The mixtures of the rows from slot `first` on, which `plan` has gathered; None where they would not fit."""
        if 4 * self.rows * plan.gates.shape[1] * sum(group.numbers for group in self.groups) > LIMIT:
            return None
        if self._last is None or self._last[:2] != (first, mixtures):
            self._pick(mixtures, first, plan)
            rows = slice(first, first + len(mixtures))
            self._last = (first, mixtures, RowMix({g: _view(f, rows) for g, f in self._factors.items()}, self.groups))
        return self._last[2]

    def _pick(self, mixtures: Sequence[Mixture], first: int, plan: Plan) -> None:
        if plan.gates.shape[1] > self._count:
            self.clear()
            self._count = plan.gates.shape[1]
            self._factors = {group: self._empty(group) for group in self.groups}
        null = self.groups.model.layout.total
        for row, mixture in enumerate(mixtures, first):
            if self._held[row] == mixture:
                continue
            self._held[row] = mixture
            slots = torch.full((self._count,), null)
            gates = torch.zeros(self._count, 1)
            slots[: plan.gates.shape[1]], gates[: plan.gates.shape[1], 0] = plan.slots[row - first], plan.gates[row - first]
            for group, factors in self._factors.items():
                parts = group.A.unflatten(0, (len(group.layers), -1))[:, slots]  # (members, K, d_in)
                factors.down[row] = parts.flatten(0, 1).T
                for up, b in zip(factors.up, group.B, strict=True):
                    up[row] = b[slots] * gates

    def _empty(self, group: Group) -> _Factors:
        down = torch.zeros(self.rows, len(group.layers) * self._count, group.A.shape[1]).mT
        return _Factors(down, [torch.zeros(self.rows, self._count, b.shape[1]) for b in group.B])


def _view(factors: _Factors, rows: slice) -> _Factors:
    return _Factors(factors.down[rows], [up[rows] for up in factors.up])


class RowMix:
    """The rows of one step."""

    def __init__(self, factors: dict[Group, _Factors], groups: Groups) -> None:
        self._of = {layer: (*groups.of(layer), factors[groups.of(layer)[0]]) for group in groups for layer in group.layers}
        self._seen: tuple[Group | None, torch.Tensor | None, Sequence[torch.Tensor]] = (None, None, ())

    def output(self, layer: GatedLinear, x: torch.Tensor) -> torch.Tensor:
        """As Mixing says."""
        group, member, factors = self._of[layer]
        if self._seen[0] is not group or self._seen[1] is not x:
            hidden = torch.bmm(x.float(), factors.down)  # (rows, 1, members · K)
            self._seen = (group, x, hidden.chunk(len(group.layers), -1))
        return layer.base(x).add_(torch.bmm(self._seen[2][member], factors.up[member]))
