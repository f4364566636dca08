"""``pipeline.toml``: the declarative part of a pipeline bundle."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import msgspec

from compass_shared.errors import ConfigError
from compass_shared.model_ref import ModelRef, model_ref_from
from compass_shared.names import is_name
from compass_shared.payloads import check_codec
from compass_shared.pipeline import REQUEST, InputSet, Metric, Operator, Pipeline, knob_text
from compass_shared.site import Tier
from compass_shared.toml_file import convert, line_of, read_toml
from compass_shared.values import KnobValue

FILE_NAME = "pipeline.toml"
SCHEMA = 1
RUNTIMES = ("python", "onnx", "tflite")
METRIC_KINDS = ("mean", "ratio")
ORIGIN = "origin"
PLACES = (ORIGIN, *(tier.value for tier in Tier))
"""What ``must_run_on`` may name."""
MAX_ITEMS_BATCH = 4096
MAX_CONFIGS = 10**12
"""Spaces that large are searched; whatever lists configs has a limit of its own."""

_KNOB = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KNOB_TEXT = re.compile(r"[^\[\],;=\x00-\x1f\x7f]{1,200}")


class OperatorTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[operators]]`` table."""

    name: str
    inputs: tuple[str, ...]
    runtime: str
    function: str | None = None
    knobs: dict[str, tuple[KnobValue, ...]] = {}
    model: str | None = None
    model_knob: str | None = None
    model_when: dict[str, KnobValue] = {}
    speed_class: str = "python"
    must_run_on: str | tuple[str, ...] = ()
    stateful: bool = False
    items: str | None = None
    items_batch: int = 16
    codec_knob: str | None = None


class MetricTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[metric]`` table, or one of ``[[extra_metrics]]``."""

    name: str
    function: str
    kind: str = "mean"


class InputsTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[inputs]`` table."""

    function: str
    splits: dict[str, int]
    assets: dict[str, str] = {}
    features: str | None = None
    sequences: bool = False


class PipelineDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: int
    name: str
    version: str
    operators: tuple[OperatorTable, ...]
    output: str
    description: str = ""
    metric: MetricTable | None = None
    extra_metrics: tuple[MetricTable, ...] = ()
    inputs: InputsTable | None = None
    fixed_split: dict[str, str] = {}
    models: dict[str, dict[str, Any]] = {}


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
    if document.schema != SCHEMA:
        raise ConfigError(f"schema {document.schema} is not {SCHEMA}, the one known here", field="schema")
    if not is_name(document.name):
        raise ConfigError(f"{document.name!r} must match [a-z0-9-]{{1,64}}", field="name")
    models = {
        name: model_ref_from(table, field=f"models.{name}", file=None)
        for name, table in document.models.items()
    }
    _check_names(document)
    for index, table in enumerate(document.operators):
        _check_operator(table, document, models, field=f"operators[{index}]")
    _check_assets(document, models)
    operators = _in_order(document)
    if document.output not in {operator.name for operator in operators}:
        raise ConfigError(f"no operator is called {document.output!r}", field="output")
    _check_all_used(document)
    _check_metrics(document)
    _check_split(document)
    pipeline = Pipeline(
        name=document.name,
        version=document.version,
        description=document.description,
        operators=operators,
        output=document.output,
        metric=_as(Metric, document.metric),
        extra_metrics=tuple(_as(Metric, table) for table in document.extra_metrics),
        fixed_split=document.fixed_split,
        inputs=_as(InputSet, document.inputs),
        models=models,
        digest=digest,
    )
    if pipeline.config_count() > MAX_CONFIGS:
        raise ConfigError(f"{pipeline.config_count()} configs are more than {MAX_CONFIGS}", field="operators")
    return pipeline


def _as(into: Any, table: msgspec.Struct | None) -> Any:  # one dataclass from its own table
    return None if table is None else into(**msgspec.structs.asdict(table))


def _check_names(document: PipelineDocument) -> None:
    seen: set[str] = set()
    for index, table in enumerate(document.operators):
        field = f"operators[{index}].name"
        if not is_name(table.name) or table.name == REQUEST:
            raise ConfigError(
                f"{table.name!r} must match [a-z0-9-]{{1,64}} and not be {REQUEST!r}", field=field
            )
        if table.name in seen:
            raise ConfigError(f"two operators are called {table.name!r}", field=field)
        seen.add(table.name)


def _check_operator(
    table: OperatorTable, document: PipelineDocument, models: Mapping[str, ModelRef], *, field: str
) -> None:
    names = [operator.name for operator in document.operators]
    if table.runtime not in RUNTIMES:
        raise ConfigError(f"{table.runtime!r} is not one of {', '.join(RUNTIMES)}", field=f"{field}.runtime")
    if not table.inputs:
        raise ConfigError(f"list the operators it reads, or {REQUEST!r}", field=f"{field}.inputs")
    for name in table.inputs:
        if name != REQUEST and name not in names:
            raise ConfigError(
                f"no operator is called {name!r}; there are {', '.join(names)}", field=f"{field}.inputs"
            )
    if table.runtime == "python" and table.function is None:
        raise ConfigError("a python operator needs a function, 'module:function'", field=f"{field}.function")
    if table.function is not None and table.function.count(":") != 1:
        raise ConfigError(f"{table.function!r} is not 'module:function'", field=f"{field}.function")
    _check_knobs(table, models, field=field)
    _check_places(table, field=field)
    _check_items(table, field=field)
    _check_codecs(table, document, field=field)


def _places(table: OperatorTable) -> tuple[str, ...]:
    return (table.must_run_on,) if isinstance(table.must_run_on, str) else table.must_run_on


def _check_places(table: OperatorTable, *, field: str) -> None:
    for place in _places(table):
        if place not in PLACES:
            raise ConfigError(f"{place!r} is not one of {', '.join(PLACES)}", field=f"{field}.must_run_on")


def _check_items(table: OperatorTable, *, field: str) -> None:
    if table.items is not None and table.items not in table.inputs:
        raise ConfigError(f"{table.items!r} is not among its inputs", field=f"{field}.items")
    if not 1 <= table.items_batch <= MAX_ITEMS_BATCH:
        problem = f"{table.items_batch} must lie between 1 and {MAX_ITEMS_BATCH}"
        raise ConfigError(problem, field=f"{field}.items_batch")
    if table.items is not None and table.stateful:
        raise ConfigError("what works item by item keeps no state", field=f"{field}.stateful")


def _check_codecs(table: OperatorTable, document: PipelineDocument, *, field: str) -> None:
    if table.codec_knob is None:
        return
    if table.codec_knob not in table.knobs:
        raise ConfigError(f"there is no knob {table.codec_knob!r}", field=f"{field}.codec_knob")
    if table.name == document.output:
        raise ConfigError("the pipeline's output is not encoded", field=f"{field}.codec_knob")
    for value in table.knobs[table.codec_knob]:
        check_codec(value, field=f"{field}.knobs.{table.codec_knob}")


def _check_metrics(document: PipelineDocument) -> None:
    listed = [(table, f"extra_metrics[{index}]") for index, table in enumerate(document.extra_metrics)]
    if document.metric is None and listed:
        raise ConfigError("[metric] comes first: it is what the accuracy of an SLO means", field="metric")
    if document.metric is not None:
        listed.insert(0, (document.metric, "metric"))
    seen: set[str] = set()
    for table, field in listed:
        if table.kind not in METRIC_KINDS:
            known = ", ".join(METRIC_KINDS)
            raise ConfigError(f"{table.kind!r} is not one of {known}", field=f"{field}.kind")
        if table.name in seen:
            raise ConfigError(f"two metrics are called {table.name!r}", field=f"{field}.name")
        seen.add(table.name)


def _check_split(document: PipelineDocument) -> None:
    if not document.fixed_split:
        return
    names = {table.name for table in document.operators}
    if missing := sorted(names - set(document.fixed_split)):
        raise ConfigError(f"names no tier for operator {missing[0]!r}", field="fixed_split")
    tiers = [tier.value for tier in Tier]
    for name, tier in document.fixed_split.items():
        if name not in names:
            raise ConfigError(f"no operator is called {name!r}", field=f"fixed_split.{name}")
        if tier not in tiers:
            raise ConfigError(f"{tier!r} is not one of {', '.join(tiers)}", field=f"fixed_split.{name}")


def _check_knobs(table: OperatorTable, models: Mapping[str, ModelRef], *, field: str) -> None:
    for knob, values in table.knobs.items():
        _check_knob(knob, values, field=f"{field}.knobs.{knob}")
    wanted, place = ([table.model] if table.model is not None else []), f"{field}.model"
    if table.model_knob is not None:
        if table.model is not None:
            raise ConfigError("give model or model_knob, not both", field=f"{field}.model_knob")
        if table.model_knob not in table.knobs:
            raise ConfigError(f"there is no knob {table.model_knob!r}", field=f"{field}.model_knob")
        wanted = [str(value) for value in table.knobs[table.model_knob]]
        place = f"{field}.knobs.{table.model_knob}"
    for name in wanted:
        if name not in models:
            known = ", ".join(models) or "none"
            raise ConfigError(f"[models] has no {name!r}; it has {known}", field=place)
    if table.runtime != "python" and not wanted:
        raise ConfigError(f"an operator of {table.runtime} needs model or model_knob", field=f"{field}.model")
    for knob, value in table.model_when.items():
        if value not in table.knobs.get(knob, ()):
            raise ConfigError(f"knob {knob!r} has no value {value!r}", field=f"{field}.model_when")


def _check_knob(knob: str, values: Sequence[KnobValue], *, field: str) -> None:
    """Refuse what would make two variants alike in the keys of profiles, or a key that cannot be read."""
    if not _KNOB.fullmatch(knob):
        raise ConfigError(f"a knob's name must match {_KNOB.pattern}", field=field)
    if not values:
        raise ConfigError("a knob needs at least one value", field=field)
    texts = [knob_text(value) for value in values]
    for value, text in zip(values, texts, strict=True):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{value} is not a number that can be chosen", field=field)
        if not _KNOB_TEXT.fullmatch(text):
            raise ConfigError(f"{text!r} must be printable and hold none of [ ] , ; =", field=field)
    if len(set(texts)) != len(texts):
        raise ConfigError("a knob's values must differ, as text too", field=field)


def _check_assets(document: PipelineDocument, models: Mapping[str, ModelRef]) -> None:
    places = [(f"models.{name}.assets", ref.assets) for name, ref in models.items()]
    if document.inputs is not None:
        places.append(("inputs.assets", document.inputs.assets))
    for field, assets in places:
        for name in assets.values():
            if name not in models:
                raise ConfigError(f"[models] has no {name!r}", field=field)


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
    return Operator(**{**values, "must_run_on": _places(table)})


def _check_all_used(document: PipelineDocument) -> None:
    used = {up for table in document.operators for up in table.inputs} | {document.output}
    for index, table in enumerate(document.operators):
        if table.name not in used:
            raise ConfigError(
                f"nothing reads {table.name!r} and it is not the output", field=f"operators[{index}].name"
            )
