"""What a ``pipeline.toml`` may say: every rule that looks at its tables, each naming the field it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from compass_shared.errors import ConfigError
from compass_shared.model_ref import ModelRef
from compass_shared.names import is_name
from compass_shared.payloads import check_codec
from compass_shared.pipeline import OPENAI, REQUEST, knob_text
from compass_shared.pipeline_tables import OperatorTable, PipelineDocument
from compass_shared.site import Tier
from compass_shared.values import KnobValue

SCHEMA = 1
RUNTIMES = ("python", "onnx", "tflite", OPENAI)
METRIC_KINDS = ("mean", "ratio")
ORIGIN = "origin"
PLACES = (ORIGIN, *(tier.value for tier in Tier))
"""What ``must_run_on`` may name."""
MAX_ITEMS_BATCH = 4096

_KNOB = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KNOB_TEXT = re.compile(r"[^\[\],;=\x00-\x1f\x7f]{1,200}")


def check_head(document: PipelineDocument) -> None:
    """Refuse a document of another schema, or without a name, before the rest of it is read.

    Raises:
        ConfigError: Naming the field.
    """
    if document.schema != SCHEMA:
        raise ConfigError(f"schema {document.schema} is not {SCHEMA}, the one known here", field="schema")
    if not is_name(document.name):
        raise ConfigError(f"{document.name!r} must match [a-z0-9-]{{1,64}}", field="name")


def check_document(document: PipelineDocument, models: Mapping[str, ModelRef]) -> None:
    """Refuse a document that contradicts itself; cycles are found when operators are put in order.

    Args:
        document: The tables.
        models: Those of ``[models]``, checked.

    Raises:
        ConfigError: Naming the field.
    """
    _check_names(document)
    for index, table in enumerate(document.operators):
        _check_operator(table, document, models, field=f"operators[{index}]")
    _check_assets(document, models)
    _check_endpoints(document)
    if document.output not in {table.name for table in document.operators}:
        raise ConfigError(f"no operator is called {document.output!r}", field="output")
    _check_all_used(document)
    _check_metrics(document)
    _check_split(document)


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
    _check_knobs(table, document, models, field=field)
    _check_places(table, field=field)
    _check_items(table, field=field)
    _check_codecs(table, document, field=field)


def _check_places(table: OperatorTable, *, field: str) -> None:
    for place in table.places:
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


def _check_endpoints(document: PipelineDocument) -> None:
    for name, table in document.endpoints.items():
        if not is_name(name):
            raise ConfigError(f"{name!r} must match [a-z0-9-]{{1,64}}", field=f"endpoints.{name}")
        if not table.model.strip():
            raise ConfigError("say what the endpoint calls the model", field=f"endpoints.{name}.model")


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


def _check_knobs(
    table: OperatorTable, document: PipelineDocument, models: Mapping[str, ModelRef], *, field: str
) -> None:
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
    kind = "endpoints" if table.runtime == OPENAI else "models"
    there = list(document.endpoints) if table.runtime == OPENAI else list(models)
    for name in wanted:
        if name not in there:
            known = ", ".join(there) or "none"
            raise ConfigError(f"[{kind}] has no {name!r}; it has {known}", field=place)
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
    places += [(f"models.{name}.made_of", ref.made_of) for name, ref in models.items()]
    if document.inputs is not None:
        places.append(("inputs.assets", document.inputs.assets))
    for field, assets in places:
        for name in assets.values():
            if name not in models:
                raise ConfigError(f"[models] has no {name!r}", field=field)


def _check_all_used(document: PipelineDocument) -> None:
    used = {up for table in document.operators for up in table.inputs} | {document.output}
    for index, table in enumerate(document.operators):
        if table.name not in used:
            raise ConfigError(
                f"nothing reads {table.name!r} and it is not the output", field=f"operators[{index}].name"
            )
