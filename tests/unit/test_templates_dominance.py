"""Dominance against comparing all pairs one by one, and over boxes of coefficients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner import dominance
from compass_coordinator.planner.dominance import Mask, undominated
from compass_coordinator.planner.templates import (
    Box,
    Kind,
    Quantity,
    Range,
    Templates,
    build_templates,
    prune_for_box,
)
from compass_coordinator.planner.templates import box as box_module
from compass_shared.errors import PlanningError
from compass_shared.pipeline import REQUEST, Operator, Pipeline, variant_key
from compass_shared.profile import Accuracy, AccuracyTable, OperatorProfile
from support.problem_strategies import seeds


def _one_by_one(features: Floats, preference: Floats, groups: Indices) -> list[int]:
    def removes(one: int, other: int) -> bool:
        if groups[one] != groups[other] or (features[one] > features[other]).any():
            return False
        equal = bool((features[one] == features[other]).all())
        return not equal or (preference[one], one) < (preference[other], other)

    rows = range(len(features))
    return [row for row in rows if not any(removes(other, row) for other in rows if other != row)]


@settings(max_examples=60)
@given(seeds, st.integers(0, 120), st.integers(1, 5), st.integers(1, 6), st.integers(1, 3))
def test_undominated_rows_are_those_found_one_by_one(
    seed: int, rows: int, columns: int, values: int, groups: int
) -> None:
    rng = np.random.default_rng(seed)
    features = rng.integers(0, values, (rows, columns)).astype(np.float64)
    preference = rng.integers(0, 3, rows).astype(np.float64)
    group = rng.integers(0, groups, rows)
    found = undominated(features, [preference], groups=group)
    assert found.tolist() == _one_by_one(features, preference, group)


@pytest.mark.parametrize("columns", [2, 6, 20])
def test_undominated_rows_of_many(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(columns)
    features = rng.random((1500, 3)) @ rng.random((3, columns)) + 0.05 * rng.random((1500, columns))
    wanted = _one_by_one_fast(features)
    assert undominated(features).tolist() == wanted
    # However the rows are cut into parts.
    monkeypatch.setattr(dominance, "_BLOCK", 17)
    monkeypatch.setattr(dominance, "_FIRST_TILE", 3)
    monkeypatch.setattr(dominance, "_TILE", 29)
    assert undominated(features).tolist() == wanted


def _one_by_one_fast(features: Floats) -> list[int]:
    """Of rows that all differ."""
    return [
        row
        for row, own in enumerate(features)
        if not ((features <= own).all(axis=1) & (features < own).any(axis=1)).any()
    ]


def test_more_rows_than_ranks_of_16_bits() -> None:
    falling = np.arange(70_000.0)
    features = np.column_stack([falling, falling[::-1]])[::-1].copy()
    features[1] += 0.5
    groups = np.arange(70_000) // 100
    assert np.setdiff1d(np.arange(70_000), undominated(features, groups=groups)).tolist() == []
    features[1] = features[0] + 1
    assert np.setdiff1d(np.arange(70_000), undominated(features, groups=groups)).tolist() == [1]


@settings(max_examples=60)
@given(seeds, st.integers(1, 60), st.integers(1, 3))
def test_a_further_condition_decides_between_rows_that_columns_call_no_worse(
    seed: int, rows: int, columns: int
) -> None:
    rng = np.random.default_rng(seed)
    features = rng.integers(0, 3, (rows, columns)).astype(np.float64)
    # Sets of bits, of which a smaller set is no worse: a condition that no column can say.
    bits = rng.integers(0, 8, rows)

    def subset(better: Indices, worse: Indices) -> Mask:
        return np.asarray(bits[better] & ~bits[worse] == 0)

    said = np.column_stack([features, *(((bits >> bit) & 1).astype(np.float64) for bit in range(3))])
    assert undominated(features, also=subset).tolist() == undominated(said).tolist()


def _flat(works: list[list[float]], accuracies: list[float]) -> Templates:
    """Templates of one operator at one site whose work in three speed classes is as given."""
    levels = range(len(works))
    operators = tuple(
        Operator(
            name=name,
            inputs=(before,),
            runtime="python",
            knobs={"level": tuple(levels)} if len(works) > 1 else {},
        )
        for before, name in ((REQUEST, "x"), ("x", "y"), ("y", "z"))
    )
    pipeline = Pipeline(name="p", version="1", description="", operators=operators, output="z")
    known = {}
    measured = {}
    for level in levels:
        config = {op.name: {"level": level} if op.knobs else {} for op in operators}
        known[pipeline.config_key(config)] = Accuracy(mean=accuracies[level], standard_error=0.0, count=9)
        for op, work in zip(operators, works[level], strict=True):
            variant = variant_key(op.name, config[op.name])
            measured[variant] = OperatorProfile(
                variant=variant,
                mean_s=work,
                var_s2=0.0,
                p95_s=work,
                count=9,
                output_mean_bytes=0.0,
                speed_class=op.name,
            )
    table = AccuracyTable(pipeline="p", metric="m", split="s", configs=known)
    return build_templates(pipeline, table, [Kind(operators=measured, request_mean_bytes=0.0)])


def _slowdowns(templates: Templates, low: float, high: float) -> Box:
    """Every slowdown between two bounds, and nothing else counts."""

    def bounds(columns: tuple[Quantity, ...]) -> Range:
        is_work = np.array([quantity is Quantity.WORK for quantity in columns], dtype=np.float64)
        return Range(low=low * is_work, high=high * is_work)

    path = tuple(column.quantity for column in templates.path_columns)
    return Box(
        mean=bounds(path),
        var=Range(low=np.zeros(len(path)), high=np.zeros(len(path))),
        seconds=bounds(tuple(column.quantity for column in templates.total_columns)),
    )


def _kept(templates: Templates, rows: Indices) -> list[int]:
    return sorted(templates.variants[rows, 0].tolist())


def test_a_narrow_box_prunes_what_a_wide_one_cannot() -> None:
    templates = _flat([[4.0, 0.0, 0.0], [0.0, 6.0, 0.0]], [1.0, 1.0])
    assert len(templates) == 2
    assert _kept(templates, prune_for_box(templates, _slowdowns(templates, 1.0, 1.5))) == [0]
    assert _kept(templates, prune_for_box(templates, _slowdowns(templates, 1.0, 1.75))) == [0, 1]


@pytest.mark.parametrize("latency_alone", [True, False])
def test_corners_at_which_two_of_three_differ_count_as_well(latency_alone: bool) -> None:
    # Level 1 is no slower at (1, 1, 1), with one slowdown doubled and with all; with the first two it is.
    templates = _flat([[1.0, 1.0, 3.5], [2.0, 2.0, 0.0]], [1.0, 1.0])
    for high, kept in ((2.0, [0, 1]), (1.5, [1])):
        box = _slowdowns(templates, 1.0, high)
        if latency_alone:
            box = replace(box, seconds=Range(low=box.seconds.low, high=box.seconds.low))
        assert _kept(templates, prune_for_box(templates, box)) == kept


def test_many_loose_coefficients_are_compared_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    templates = _flat([[4.0, 0.0, 1.0], [0.0, 6.0, 1.0], [4.0, 6.0, 1.0]], [0.5, 0.5, 0.75])
    box = _slowdowns(templates, 1.0, 1.25)
    nothing = np.zeros_like(box.mean.low)
    box = replace(box, mean=Range(low=nothing, high=nothing))
    assert _kept(templates, prune_for_box(templates, box)) == [0, 2]
    monkeypatch.setattr(box_module, "_MOST_LOOSE", 2)
    assert _kept(templates, prune_for_box(templates, box)) == [0, 1, 2]
    assert _kept(templates, prune_for_box(templates, box, accuracy_levels=[0.5])) == [0, 1]


def test_only_accuracies_that_are_asked_for_tell_plans_apart() -> None:
    templates = _flat([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0]], [0.5, 0.625, 0.75])
    box = _slowdowns(templates, 1.0, 2.0)
    assert _kept(templates, prune_for_box(templates, box)) == [0, 1, 2]
    assert _kept(templates, prune_for_box(templates, box, accuracy_levels=[0.5, 0.75])) == [0, 2]
    assert _kept(templates, prune_for_box(templates, box, accuracy_levels=[0.75])) == [2]
    assert _kept(templates, prune_for_box(templates, box, accuracy_levels=[0.8])) == []


def test_plans_that_are_late_at_best_go() -> None:
    templates = _flat([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]], [0.5, 0.75])
    box = _slowdowns(templates, 1.0, 2.0)
    assert _kept(templates, prune_for_box(templates, box, latency_p95_s=6.0)) == [0, 1]
    assert _kept(templates, prune_for_box(templates, box, latency_p95_s=5.0)) == [0]


def test_a_box_that_makes_no_sense_is_refused() -> None:
    templates = _flat([[1.0, 1.0, 1.0]], [0.5])
    box = _slowdowns(templates, 1.0, 2.0)
    short = Range(low=np.zeros(2), high=np.ones(2))
    with pytest.raises(PlanningError, match=r"box\.var has bounds of \(2,\)"):
        prune_for_box(templates, Box(mean=box.mean, var=short, seconds=box.seconds))
    upside_down = Range(low=box.mean.high, high=box.mean.low)
    with pytest.raises(PlanningError, match=r"box\.mean: bounds are finite"):
        prune_for_box(templates, Box(mean=upside_down, var=box.var, seconds=box.seconds))
