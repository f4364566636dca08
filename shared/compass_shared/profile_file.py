"""Accuracy tables as JSON files that a team can commit: values with their provenance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import msgspec

from compass_shared.errors import ProfileError
from compass_shared.figures import Number, Share
from compass_shared.files import write_atomically
from compass_shared.pipeline import Pipeline
from compass_shared.profile import CONFIDENCE, Accuracy, AccuracyTable

SCHEMA = 1
_MAX_FILE_BYTES = 64 * 1024 * 1024
_ROUNDING = 1e-6
"""Files keep six decimals: the ends of an interval and the mean between them are rounded apart."""


class AccuracyDocument(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The whole file."""

    schema: int
    kind: str
    pipeline: str
    metric: str
    split: str
    confidence: Share = CONFIDENCE
    """What each config's interval holds with."""
    inputs: Number = 0
    """Inputs in the split, measured or not; 0 where nobody wrote it down."""
    provenance: dict[str, object]
    configs: dict[str, Accuracy]
    others: dict[str, dict[str, Accuracy]] = {}
    """Extra metric -> config key -> its mean, of the configs that were measured."""


def load_accuracy(path: Path, pipeline: Pipeline | None = None) -> AccuracyTable:
    """Load an accuracy table.

    Args:
        path: JSON file written by ``save_accuracy``.
        pipeline: If given, the table must be of this pipeline and of its very models.

    Raises:
        ProfileError: If it cannot be read, or belongs to another pipeline or other models.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ProfileError(f"{path}: larger than {_MAX_FILE_BYTES} bytes")
        document = msgspec.json.decode(path.read_bytes(), type=AccuracyDocument)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(f"{path}: {error}") from error
    if document.schema != SCHEMA or document.kind != "accuracy":
        raise ProfileError(f"{path}: expected an accuracy table of schema {SCHEMA}")
    listed = {"configs": document.configs}
    listed |= {f"others.{metric}": configs for metric, configs in document.others.items()}
    for name, configs in listed.items():
        for key, accuracy in configs.items():
            if (problem := _problem(accuracy, document.inputs)) is not None:
                raise ProfileError(f"{path}: [{name}.{key}]: {problem}")
    table = AccuracyTable(
        pipeline=document.pipeline,
        metric=document.metric,
        split=document.split,
        configs=document.configs,
        confidence=document.confidence,
        inputs=document.inputs,
        provenance=document.provenance,
        others=document.others,
    )
    if pipeline is not None:
        check_belongs(table, pipeline, source=str(path))
    return table


def _problem(found: Accuracy, inputs: int) -> str | None:
    """What is wrong with an entry, or None.

    Args:
        found: The entry.
        inputs: Inputs in the split, 0 if that is not known.
    """
    if not 0 <= found.mean <= 1 or found.standard_error < 0 or found.count < (0 if found.predicted else 1):
        return "a mean in [0, 1] of one or more inputs is expected, or of none if predicted is true"
    if inputs and found.count > inputs:
        return f"{found.count} inputs were measured, the split has {inputs}"
    if found.low is None and found.high is None:
        return None
    if found.low is None or found.high is None:
        return "low and high belong together"
    ends = (0.0, found.low, found.mean, found.high, 1.0)
    if any(low > high + _ROUNDING for low, high in itertools.pairwise(ends)):
        return f"0 <= low <= mean <= high <= 1 is expected, got {found.low}, {found.mean}, {found.high}"
    return None


def save_accuracy(path: Path, table: AccuracyTable) -> None:
    """Write an accuracy table, all of it or nothing."""
    write_atomically(path, accuracy_bytes(table))


def accuracy_bytes(table: AccuracyTable) -> bytes:
    """An accuracy table as its file has it; fields at their defaults stay away."""
    document = AccuracyDocument(
        schema=SCHEMA,
        kind="accuracy",
        pipeline=table.pipeline,
        metric=table.metric,
        split=table.split,
        confidence=table.confidence,
        inputs=table.inputs,
        provenance=dict(table.provenance),
        configs={},
    )
    built = msgspec.to_builtins(document)
    built["configs"] = _entries(table.configs)
    if table.others:
        built["others"] = {metric: _entries(configs) for metric, configs in table.others.items()}
    return msgspec.json.format(msgspec.json.encode(built), indent=1) + b"\n"


def _entries(configs: Mapping[str, Accuracy]) -> dict[str, object]:
    return {key: _entry(found) for key, found in configs.items()}


def _entry(found: Accuracy) -> dict[str, object]:
    entry = msgspec.to_builtins(found)
    optional = {"low": None, "high": None, "predicted": False}
    return {name: value for name, value in entry.items() if optional.get(name, ...) != value}


def check_belongs(table: AccuracyTable, pipeline: Pipeline, *, source: str) -> None:
    """Refuse a table that was measured on another pipeline or on other models.

    Raises:
        ProfileError: Naming the model and both hashes.
    """
    if table.pipeline != pipeline.name:
        raise ProfileError(f"{source}: profile of pipeline {table.pipeline!r}, not {pipeline.name!r}")
    models = table.provenance.get("models")
    if not isinstance(models, Mapping):
        raise ProfileError(f"{source}: its provenance names no models")
    check_models(models, pipeline, source=source)


def check_models(models: Mapping[str, object], pipeline: Pipeline, *, source: str) -> None:
    """Refuse what was measured with other models than the pipeline's.

    Args:
        models: Model -> SHA-256 of what ran; models that are not in it were not measured.
        pipeline: What it is to be used for.
        source: File, or site in words, for the error.

    Raises:
        ProfileError: Naming the model and both hashes.
    """
    for name, ref in pipeline.models.items():
        if name in models and models[name] != ref.sha256:
            raise ProfileError(
                f"{source}: measured with model {name!r} {models[name]}, the pipeline names {ref.sha256}; "
                "measure again"
            )
