"""JSON Schemas of the files that Compass reads and writes, made from the types that read and write them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from collections.abc import Mapping
from typing import Any

import msgspec

from compass_coordinator.measurements import MeasurementsDocument
from compass_coordinator.plan_document import PlanDocument
from compass_shared.fleet_file import FleetDocument
from compass_shared.pipeline_tables import PipelineDocument
from compass_shared.profile_file import AccuracyDocument

DOCUMENTS: Mapping[str, tuple[type, str]] = {
    "pipeline": (PipelineDocument, "pipeline.toml: a pipeline's operators, knobs and models"),
    "fleet": (FleetDocument, "fleet.toml: sites, links and queries"),
    "profiles": (MeasurementsDocument, "profiles: work of operators at sites and kinds of site"),
    "accuracy": (AccuracyDocument, "an accuracy table: the quality of configs"),
    "plan": (PlanDocument, "what compass plan --json prints"),
}
"""Name -> type of the whole file, and what it is."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of one kind of file; a TOML file is meant as the tables that it holds.

    Descriptions are the docstrings of the types and of their fields.

    Raises:
        KeyError: If there is no such kind.
    """
    document, title = DOCUMENTS[name]
    (reference,), definitions = msgspec.json.schema_components(
        [document], schema_hook=_anything, ref_template="#/$defs/{name}"
    )
    for described in _types_in(document):
        definition = definitions.get(described.__name__, {})
        definition["description"] = _plain(described.__doc__ or "")
        for field, text in _field_docstrings(described).items():
            if field in definition.get("properties", {}):
                definition["properties"][field]["description"] = _plain(text)
    return {"$schema": _DIALECT, "title": title, **reference, "$defs": definitions}


def schema_text(name: str) -> str:
    """The same as text, as docs/schemas/ keeps it."""
    return msgspec.json.format(msgspec.json.encode(schema_of(name)), indent=1).decode() + "\n"


def _anything(_: type) -> dict[str, Any]:
    """What a field typed ``object`` may hold."""
    return {"description": "anything"}


def _types_in(document: type) -> list[type]:
    """A type and every type of its fields that has fields of its own."""
    found: dict[type, None] = {}
    waiting: list[Any] = [document]
    while waiting:
        each = waiting.pop()
        if isinstance(each, type) and each not in found and _has_fields(each):
            found[each] = None
            waiting.extend(typing.get_type_hints(each).values())
        waiting.extend(typing.get_args(each))
    return list(found)


def _has_fields(each: type) -> bool:
    return issubclass(each, msgspec.Struct) or dataclasses.is_dataclass(each)


def _field_docstrings(described: type) -> dict[str, str]:
    """Name of each field, as files spell it -> the string that stands below it in the source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(described))).body
    statements = body.body if isinstance(body, ast.ClassDef) else []
    spelled = {}
    if issubclass(described, msgspec.Struct):
        spelled = {field.name: field.encode_name for field in msgspec.structs.fields(described)}
    texts = {}
    for field, text in itertools.pairwise(statements):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match text:
                case ast.Expr(value=ast.Constant(value=str(said))):
                    texts[spelled.get(field.target.id, field.target.id)] = said
    return texts


def _plain(text: str) -> str:
    return " ".join(text.replace("``", "`").split())
