"""The report as one value, and its JSON form; report.schema.json beside this file describes the latter."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moe_router.errors import LibraryError, WorkspaceError
from moe_router.report.arms import Arm, Comparison, CurvePoint, ExpertRow, Price, Regret, Routing, SliceMap, SliceRow, Verdict
from moe_router.workspace import read_json

SCHEMA = 1
"""Version of report.json; new optional fields leave it as it is."""


@dataclass(frozen=True)
class Report:
    """Everything that a report says; `report.json` holds the same."""

    arms: tuple[Arm, ...]
    experts: tuple[ExpertRow, ...]
    comparisons: tuple[Comparison, ...]
    verdict: Verdict
    slices: tuple[SliceRow, ...] = ()
    sources: tuple[SliceRow, ...] = ()
    """The same by the file that the records came from, where there are several."""
    regret: Regret | None = None
    routing: Routing | None = None
    slice_map: SliceMap | None = None
    curve: tuple[CurvePoint, ...] = ()
    """The mixture and its fair rival trained on fewer tokens, and on all."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions, device, seeds, command, data digests."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each stage."""
    notes: tuple[str, ...] = ()
    """What was not tested, and what limits the figures."""
    price_per_hour: float = 0.0
    """Of the machine, in the user's currency; 0 where none was given."""
    answer_tokens: tuple[float, float] = (0.0, 0.0)
    """Tokens of a test prompt and of its reference answer, on average."""
    inputs: str = ""
    """Digest of what it was made from."""
    fresh: bool = field(default=True, compare=False)
    """False when nothing had to be done."""

    def arm(self, name: str) -> Arm | None:
        """The arm of that id, if it was measured."""
        return next((arm for arm in self.arms if arm.id == name), None)

    def priced(self, per_hour: float) -> Report:
        """The same figures with what they cost at this price of an hour of the machine; 0 takes prices away."""
        arms = tuple(replace(arm, price=_price(arm, per_hour, self.answer_tokens) if per_hour else None) for arm in self.arms)
        return replace(self, arms=arms, price_per_hour=per_hour)

    def to_json(self) -> dict[str, Any]:
        """Plain data; optional figures that were not measured are left out."""
        value = {"schema": SCHEMA} | _plain({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
        del value["fresh"]
        return value

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read report.json. Raises WorkspaceError when it is missing, damaged, or of another version."""
        value = read_json(path)
        try:
            if value.pop("schema") != SCHEMA:
                raise WorkspaceError(f"{path} is of another version than {SCHEMA}: run `moe-router report` again")
            return _built(cls, value | {"fresh": False})
        except (AttributeError, KeyError, TypeError, LibraryError) as error:
            raise WorkspaceError(f"{path} is damaged ({error}): delete it and run `moe-router report` again") from error

    def lines(self) -> list[str]:
        """For the terminal."""
        from moe_router.report.terminal import report_lines

        return report_lines(self)


def _price(arm: Arm, per_hour: float, answer_tokens: tuple[float, float]) -> Price:
    """Reading a prompt and generating an answer at the measured speeds; training at the FLOPs per second of scoring."""
    read, write = arm.tokens_per_second, arm.generated_per_second
    answers = training = None
    if read and write:
        answers = 1000 * (answer_tokens[0] / read + answer_tokens[1] / write) * per_hour / 3600
    if read and arm.train_flops:
        training = arm.train_flops / (read * arm.flops_per_token) * per_hour / 3600
    return Price(answers, training)


def _plain(value: Any) -> Any:
    """Dataclasses and mappings as dicts, tuples as lists; what is None is left out of dicts."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _built(kind: Any, value: Any) -> Any:
    """The other way round: `kind` from plain data, by its annotations."""
    if dataclasses.is_dataclass(kind):
        kinds = typing.get_type_hints(kind)
        return kind(**{name: _built(kinds.get(name), item) for name, item in value.items()})
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        each = [parts[0]] * len(value) if parts[-1] is ... else parts
        return tuple(_built(part, item) for part, item in zip(each, value, strict=True))
    inner = next((part for part in parts if dataclasses.is_dataclass(part)), None)
    return _built(inner, value) if inner and value is not None else value
