"""Figures of one pipeline at some kinds of sites, as arrays that labels are grown from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compass_coordinator.estimator import Floats
from compass_coordinator.planner.dominance import Mask
from compass_coordinator.planner.templates.columns import Column, Quantity, path_columns, total_columns
from compass_coordinator.planner.templates.kinds import Kind
from compass_shared.errors import PlanningError
from compass_shared.pipeline import Pipeline, variant_key
from compass_shared.profile import AccuracyTable


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperatorTable:
    """One operator at one role; v variants."""

    features: Floats
    """(v, F) that a call adds to its path: work, its variance, and one call."""
    measured: Mask
    """(v,) whether it can be placed there at all; figures of others are 0."""
    out_mean_bytes: Floats
    """(v,)."""
    out_var_bytes2: Floats
    """(v,)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tables:
    """Everything that building needs to know of a pipeline and its kinds."""

    pipeline: Pipeline
    kinds: tuple[Kind, ...]
    columns: tuple[Column, ...]
    """F columns of a path."""
    totals: tuple[Column, ...]
    """T columns of a plan, a selection of ``columns``."""
    operators: dict[tuple[str, int], OperatorTable]
    """(operator, role)."""
    accuracy: Floats
    """(configs,), -inf where it was not measured."""

    def at(self, role: int, quantity: Quantity) -> int:
        """Index of a column that is not by speed class."""
        return self.columns.index(Column(role, quantity))

    @property
    def total_of(self) -> list[int]:
        """Where each total stands among ``columns``."""
        return [self.columns.index(column) for column in self.totals]


def tables(pipeline: Pipeline, accuracy: AccuracyTable, kinds: Sequence[Kind], limit: int) -> Tables:
    """Look up every variant at every kind.

    Raises:
        PlanningError: If there is no kind, or there are more than ``limit`` configs.
    """
    if not kinds:
        raise PlanningError(f"pipeline {pipeline.name!r}: templates need the kind of the origin at least")
    if pipeline.config_count() > limit:
        raise PlanningError(
            f"pipeline {pipeline.name!r} has {pipeline.config_count()} configs, too many to enumerate "
            f"({limit}): search it instead"
        )
    variants = {
        op.name: [variant_key(op.name, knobs) for knobs in op.variants()] for op in pipeline.operators
    }
    wanted = {key for keys in variants.values() for key in keys}
    classes = sorted(
        {op.speed_class for kind in kinds for key, op in kind.operators.items() if key in wanted}
    )
    columns = path_columns(len(kinds), classes)
    return Tables(
        pipeline=pipeline,
        kinds=tuple(kinds),
        columns=columns,
        totals=total_columns(columns),
        operators={
            (op.name, role): _operator(variants[op.name], kind, role, columns)
            for op in pipeline.operators
            for role, kind in enumerate(kinds)
        },
        accuracy=_accuracy(pipeline, accuracy),
    )


def _operator(variants: Sequence[str], kind: Kind, role: int, columns: Sequence[Column]) -> OperatorTable:
    index = {column: at for at, column in enumerate(columns)}
    features = np.zeros((len(variants), len(columns)))
    measured = np.zeros(len(variants), dtype=np.bool_)
    sizes = np.zeros((2, len(variants)))
    for at, variant in enumerate(variants):
        found = kind.operators.get(variant)
        if found is None:
            continue
        measured[at] = True
        features[at, index[Column(role, Quantity.WORK, found.speed_class)]] = found.mean_s
        features[at, index[Column(role, Quantity.WORK_VAR, found.speed_class)]] = found.var_s2
        features[at, index[Column(role, Quantity.CALLS)]] = 1.0
        sizes[:, at] = found.output_mean_bytes, found.output_var_bytes2
    return OperatorTable(
        features=features, measured=measured, out_mean_bytes=sizes[0], out_var_bytes2=sizes[1]
    )


def _accuracy(pipeline: Pipeline, table: AccuracyTable) -> Floats:
    known = table.configs
    keys = (pipeline.config_key(config) for config in pipeline.configs())
    return np.array([known[key].mean if key in known else -np.inf for key in keys])
