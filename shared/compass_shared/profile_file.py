"""Accuracy tables as JSON files that a team can commit: values with their provenance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from compass_shared.errors import ProfileError
from compass_shared.files import write_atomically
from compass_shared.pipeline import Pipeline
from compass_shared.profile import Accuracy, AccuracyTable

SCHEMA = 1
_MAX_FILE_BYTES = 64 * 1024 * 1024


class AccuracyDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: int
    kind: str
    pipeline: str
    metric: str
    split: str
    provenance: dict[str, object]
    configs: dict[str, Accuracy]


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
    for key, accuracy in document.configs.items():
        if not 0 <= accuracy.mean <= 1 or accuracy.standard_error < 0 or accuracy.count < 1:
            raise ProfileError(f"{path}: [configs.{key}]: a mean in [0, 1] of one or more inputs is expected")
    table = AccuracyTable(
        pipeline=document.pipeline,
        metric=document.metric,
        split=document.split,
        configs=document.configs,
        provenance=document.provenance,
    )
    if pipeline is not None:
        check_belongs(table, pipeline, source=str(path))
    return table


def save_accuracy(path: Path, table: AccuracyTable) -> None:
    """Write an accuracy table, all of it or nothing."""
    document = AccuracyDocument(
        schema=SCHEMA,
        kind="accuracy",
        pipeline=table.pipeline,
        metric=table.metric,
        split=table.split,
        provenance=dict(table.provenance),
        configs=dict(table.configs),
    )
    write_atomically(path, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


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
    for name, ref in pipeline.models.items():
        if name in models and models[name] != ref.sha256:
            raise ProfileError(
                f"{source}: measured with model {name!r} {models[name]}, the pipeline names {ref.sha256}; "
                "measure again"
            )
