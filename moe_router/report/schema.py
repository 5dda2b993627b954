"""The JSON Schema of report.json, from the dataclasses that it is made of.

`python -m moe_router.report.schema` writes report.schema.json anew; a test says when that is due.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_router.config import field_help
from moe_router.report.arms import Arm, Verdict
from moe_router.report.document import SCHEMA, Report
from moe_router.report.html import USES
from moe_router.report.registry import ARMS
from moe_router.workspace import write_json

PATH = Path(__file__).with_name("report.schema.json")
KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}
CHOICES = {(Arm, "id"): list(ARMS), (Verdict, "use"): list(USES)}
HIDDEN = {(Report, "fresh")}


def schema() -> dict[str, Any]:
    """Draft 2020-12. Every dataclass but the report itself is one of `$defs`."""
    parts: dict[str, Any] = {}
    top = _object(Report, parts)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "report.json of moe-router"}
    top["properties"] = {"schema": {"const": SCHEMA}} | top["properties"]
    top["required"] = ["schema", *top["required"]]
    return head | top | {"$defs": parts}


def _object(kind: type, parts: dict[str, Any]) -> dict[str, Any]:
    hints, words = typing.get_type_hints(kind), field_help(kind)
    properties, required = {}, []
    for field in dataclasses.fields(kind):
        if (kind, field.name) in HIDDEN:
            continue
        found = _value(hints[field.name], parts)
        if (kind, field.name) in CHOICES:
            found = {"enum": CHOICES[kind, field.name]}
        described = {"description": words[field.name]} if field.name in words and "$ref" not in found else {}
        properties[field.name] = described | found
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required.append(field.name)
    made = {"description": inspect.getdoc(kind), "type": "object", "properties": properties, "required": required}
    return made | {"additionalProperties": False}


def _value(kind: Any, parts: dict[str, Any]) -> dict[str, Any]:
    if kind in KINDS:
        return {"type": KINDS[kind]}
    if dataclasses.is_dataclass(kind):
        if kind.__name__ not in parts:
            parts[kind.__name__] = {}
            parts[kind.__name__] = _object(kind, parts)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return _value(next(part for part in inner if part is not types.NoneType), parts)
    if origin is tuple and inner[-1] is ...:
        return {"type": "array", "items": _value(inner[0], parts)}
    if origin is tuple:
        items = [_value(part, parts) for part in inner]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if origin is Mapping:
        return {"type": "object"} | ({} if inner[1] is Any else {"additionalProperties": _value(inner[1], parts)})
    raise TypeError(f"no JSON Schema for {kind}")


if __name__ == "__main__":
    write_json(PATH, schema())
