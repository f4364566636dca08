"""Files that several commands read."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from compass_shared.arguments import not_negative
from compass_shared.errors import ConfigError
from compass_shared.model_cache import default_cache_dir
from compass_shared.pipeline import Pipeline
from compass_shared.pipeline_file import load_pipeline
from compass_shared.profile import AccuracyTable, lower_bound
from compass_shared.profile_file import check_belongs, load_accuracy

ACCURACY_IN_BUNDLE = Path("profile") / "accuracy.json"
"""Where a bundle keeps its accuracy table."""
INPUTS_IN_BUNDLE = Path("profile") / "inputs.json"
"""Where a bundle keeps the scores of every input that the table was made of."""


def cache_root(option: Path | None) -> Path:
    """The model cache: as given, else the user's."""
    return option or default_cache_dir(os.environ)


ACCURACY_Z = 1.645
"""Plans rest on accuracies that the profile gives with 95% confidence, unless told otherwise."""


def load_planned(
    bundles: Sequence[Path], accuracy_files: Sequence[Path], *, z: float = ACCURACY_Z
) -> tuple[dict[str, Pipeline], dict[str, AccuracyTable]]:
    """Pipelines with their accuracy tables.

    Args:
        bundles: Bundle folders or pipeline files.
        accuracy_files: Tables that take the place of the bundles' own.
        z: How many standard errors below its mean an accuracy is taken to be.

    Raises:
        ConfigError: If a pipeline file is wrong, two are of one pipeline, or a pipeline has no table.
        ProfileError: If a table is of another pipeline or other models.
    """
    pipelines: dict[str, Pipeline] = {}
    for folder in bundles:
        pipeline = load_pipeline(folder)
        if pipeline.name in pipelines:
            raise ConfigError(f"two bundles bring pipeline {pipeline.name!r}", file=folder)
        pipelines[pipeline.name] = pipeline
    tables: dict[str, AccuracyTable] = {}
    for file in accuracy_files:
        table = load_accuracy(file)
        if table.pipeline not in pipelines:
            raise ConfigError(f"of pipeline {table.pipeline!r}, which no --bundle brings", file=file)
        check_belongs(table, pipelines[table.pipeline], source=str(file))
        tables[table.pipeline] = table
    for folder, pipeline in zip(bundles, pipelines.values(), strict=True):
        if pipeline.name not in tables:
            tables[pipeline.name] = load_accuracy(_own_table(folder, pipeline), pipeline)
    return pipelines, {name: lower_bound(table, z) for name, table in tables.items()}


def add_accuracy_z(parser: argparse.ArgumentParser) -> None:
    """Add ``--accuracy-z``."""
    parser.add_argument(
        "--accuracy-z",
        type=not_negative,
        default=ACCURACY_Z,
        metavar="Z",
        help="plan on accuracies this many standard errors below their means (default: %(default)s)",
    )


def _own_table(folder: Path, pipeline: Pipeline) -> Path:
    path = (folder if folder.is_dir() else folder.parent) / ACCURACY_IN_BUNDLE
    if not path.is_file():
        raise ConfigError(
            f"pipeline {pipeline.name!r} has no accuracy table; measure one with "
            f"`compass-agent accuracy {folder} --out {path}` or name one with --accuracy",
            file=path,
        )
    return path
