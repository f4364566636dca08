"""``pipeline.toml``: the declarative part of a pipeline bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import msgspec

from compass_shared.errors import ConfigError
from compass_shared.model_ref import model_ref_from
from compass_shared.pipeline import (
    ENDPOINT_CLASS,
    OPENAI,
    REQUEST,
    Endpoint,
    InputSet,
    Metric,
    Operator,
    Pipeline,
)
from compass_shared.pipeline_checks import check_document, check_head
from compass_shared.pipeline_tables import OperatorTable, PipelineDocument
from compass_shared.toml_file import convert, line_of, read_toml

FILE_NAME = "pipeline.toml"
MAX_CONFIGS = 10**12
"""Spaces that large are searched; whatever lists configs has a limit of its own."""


def load_pipeline(path: Path) -> Pipeline:
    """Load ``pipeline.toml``.

    Args:
        path: The file, or the bundle folder that holds it.

    Raises:
        ConfigError: Naming file, field and line.
    """
    file = path / FILE_NAME if path.is_dir() else path
    tables, text = read_toml(file)
    document = convert(tables, PipelineDocument, file=file, text=text)
    try:
        return pipeline_from(document, digest=digest_of(tables))
    except ConfigError as error:
        raise ConfigError(
            error.problem,
            file=file,
            field=error.field,
            line=line_of(text, error.field) if error.field else None,
        ) from error


def digest_of(tables: Mapping[str, Any]) -> str:
    """SHA-256 of the declarative part; spelling and comments do not change it."""
    return hashlib.sha256(msgspec.json.encode(tables, order="deterministic")).hexdigest()


def pipeline_from(document: PipelineDocument, *, digest: str) -> Pipeline:
    """Validate a document into a pipeline with operators in topological order.

    Raises:
        ConfigError: Naming the field.
    """
    check_head(document)
    models = {
        name: model_ref_from(table, field=f"models.{name}", file=None)
        for name, table in document.models.items()
    }
    check_document(document, models)
    pipeline = Pipeline(
        name=document.name,
        version=document.version,
        description=document.description,
        operators=_in_order(document),
        output=document.output,
        metric=_as(Metric, document.metric),
        extra_metrics=tuple(_as(Metric, table) for table in document.extra_metrics),
        fixed_split=document.fixed_split,
        inputs=_as(InputSet, document.inputs),
        models=models,
        endpoints={name: _as(Endpoint, table) for name, table in document.endpoints.items()},
        digest=digest,
    )
    if pipeline.config_count() > MAX_CONFIGS:
        raise ConfigError(f"{pipeline.config_count()} configs are more than {MAX_CONFIGS}", field="operators")
    return pipeline


def _as(into: Any, table: msgspec.Struct | None) -> Any:  # one dataclass from its own table
    return None if table is None else into(**msgspec.structs.asdict(table))


def _in_order(document: PipelineDocument) -> tuple[Operator, ...]:
    graph = {table.name: [up for up in table.inputs if up != REQUEST] for table in document.operators}
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        raise ConfigError(
            f"the operators form a cycle: {' -> '.join(cycle)}",
            field=f"operators[{list(graph).index(cycle[0])}].inputs",
        ) from error
    by_name = {table.name: table for table in document.operators}
    order: list[str] = []
    while sorter.is_active():
        # Ready operators are taken in file order, so that the order is the author's wherever it can be.
        ready = sorted(sorter.get_ready(), key=list(by_name).index)
        order.extend(ready)
        sorter.done(*ready)
    return tuple(_operator(by_name[name]) for name in order)


def _operator(table: OperatorTable) -> Operator:
    values = msgspec.structs.asdict(table)
    if table.runtime == OPENAI:
        values["speed_class"] = ENDPOINT_CLASS
    return Operator(**{**values, "must_run_on": table.places})
