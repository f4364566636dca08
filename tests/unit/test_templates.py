"""Templates by hand: waists, what can be placed and chosen, roles, counts, limits, the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from compass_coordinator.planner.templates import (
    Column,
    Kind,
    Quantity,
    Templates,
    build,
    build_templates,
    expand,
    templates_key,
)
from compass_coordinator.planner.templates.blocks import blocks
from compass_shared.errors import PlanningError
from compass_shared.pipeline import REQUEST, Operator, Pipeline, variant_key
from compass_shared.profile import Accuracy, AccuracyTable, OperatorProfile
from support.template_cases import CaseShape, random_case


def _pipeline(reads: Mapping[str, tuple[str, ...]], levels: int = 1, output: str = "") -> Pipeline:
    knobs = {"level": tuple(range(levels))} if levels > 1 else {}
    operators = tuple(
        Operator(name=name, inputs=inputs, runtime="python", knobs=knobs) for name, inputs in reads.items()
    )
    return Pipeline(
        name="p", version="1", description="", operators=operators, output=output or operators[-1].name
    )


def _kind(pipeline: Pipeline, mean_s: float = 1.0, **changed: float) -> Kind:
    """Every variant takes ``mean_s``; ``changed`` gives operators other means, below 0 it leaves them out."""
    means = {
        variant_key(op.name, knobs): changed.get(op.name, mean_s)
        for op in pipeline.operators
        for knobs in op.variants()
    }
    return Kind(
        operators={
            variant: OperatorProfile(
                variant=variant, mean_s=mean, var_s2=0.25, p95_s=mean, count=9, output_mean_bytes=8.0
            )
            for variant, mean in means.items()
            if mean >= 0
        },
        request_mean_bytes=64.0,
    )


def _table(pipeline: Pipeline, *means: float) -> AccuracyTable:
    keys = [pipeline.config_key(config) for config in pipeline.configs()]
    return AccuracyTable(
        pipeline="p",
        metric="m",
        split="s",
        configs={
            key: Accuracy(mean=mean, standard_error=0.0, count=9)
            for key, mean in zip(keys, means, strict=False)
        },
    )


CHAIN = {"a": (REQUEST,), "b": ("a",), "c": ("b",)}
JOIN = {"a": (REQUEST,), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ("d",)}


@pytest.mark.parametrize(
    ("reads", "output", "expected"),
    [
        (CHAIN, "", ["a", "b", "c"]),
        (JOIN, "", ["a", "bcd", "e"]),
        ({"a": (REQUEST,), "b": ("a",), "c": ("a", "b"), "d": ("c",)}, "", ["a", "bc", "d"]),
        ({"a": (REQUEST,), "b": ("a",), "c": (REQUEST, "b")}, "", ["abc"]),
        ({"a": (REQUEST,), "b": (REQUEST,), "c": ("a", "b"), "d": ("c",)}, "", ["abc", "d"]),
        (CHAIN, "b", ["a", "bc"]),
    ],
)
def test_a_pipeline_is_cut_where_all_goes_through_one_operator(
    reads: Mapping[str, tuple[str, ...]], output: str, expected: list[str]
) -> None:
    found = blocks(_pipeline(reads, output=output))
    assert ["".join(op.name for op in block.operators) for block in found] == expected
    assert found[0].base is None
    assert [after.base for after in found[1:]] == [before.operators[-1] for before, _ in pairwise(found)]


def test_a_variant_that_is_worse_in_all_is_no_template() -> None:
    pipeline = _pipeline({"a": (REQUEST,)}, levels=3)
    kind = _kind(pipeline)
    slow = replace(kind.operators["a[level=1]"], mean_s=2.0)
    kind = Kind(operators={**kind.operators, "a[level=1]": slow}, request_mean_bytes=64.0)
    templates = build_templates(pipeline, _table(pipeline, 0.5, 0.5, 0.75), [kind])
    assert templates.variants.tolist() == [[2]], "as fast as level 0 and more accurate"
    assert templates.accuracy.tolist() == [0.75]
    assert templates.counts == (("combinations", 3), ("labels after a", 3), ("undominated after a", 1))
    assert templates.path_columns == (
        Column(0, Quantity.WORK),
        Column(0, Quantity.WORK_VAR),
        Column(0, Quantity.CALLS),
        Column(0, Quantity.VISITS),
    )
    assert templates.paths.tolist() == [[[1.0, 0.25, 1.0, 1.0]]]
    assert templates.total_columns == (Column(0, Quantity.WORK), Column(0, Quantity.CALLS))


def test_branches_on_two_sites_keep_a_vector_each() -> None:
    pipeline = _pipeline(JOIN)
    kinds = [_kind(pipeline, c=1.5), _kind(pipeline, 2.0, b=3.0)]
    templates = build_templates(pipeline, _table(pipeline, 1.0), kinds)
    (row,) = np.flatnonzero((templates.placement == [0, 0, 1, 0, 0]).all(axis=1))
    visits = [
        templates.path_columns.index(column)
        for column in (Column(0, Quantity.VISITS), Column(1, Quantity.VISITS), Column(1, Quantity.UP_SQ))
    ]
    # a and b are one segment: c, on the other site, starts when both are done.
    assert {tuple(path) for path in templates.paths[:, row, visits]} == {(2.0, 1.0, 64.0)}
    (row,) = np.flatnonzero((templates.placement == [1, 0, 1, 0, 0]).all(axis=1))
    assert {tuple(path) for path in templates.paths[:, row, visits]} == {(1.0, 1.0, 64.0**2)}


def test_two_branches_away_are_two_paths() -> None:
    pipeline = _pipeline(JOIN)
    kinds = [_kind(pipeline), _kind(pipeline, 2.0), _kind(pipeline, 3.0)]
    templates = build_templates(pipeline, _table(pipeline, 1.0), kinds)
    (row,) = np.flatnonzero((templates.placement == [0, 1, 2, 0, 0]).all(axis=1))
    work = [templates.path_columns.index(Column(role, Quantity.WORK)) for role in range(3)]
    assert {tuple(path) for path in templates.paths[:, row, work]} == {(3.0, 2.0, 0.0), (3.0, 0.0, 3.0)}


def test_what_was_not_measured_is_not_placed_there() -> None:
    pipeline = _pipeline(CHAIN)
    kinds = [_kind(pipeline, b=-1), _kind(pipeline, a=-1, c=-1)]
    templates = build_templates(pipeline, _table(pipeline, 1.0), kinds)
    assert templates.placement.tolist() == [[0, 1, 0]]


def test_what_has_no_accuracy_is_not_chosen() -> None:
    pipeline = _pipeline({"a": (REQUEST,), "b": ("a",)}, levels=2)
    kinds = [_kind(pipeline)]
    table = _table(pipeline, 0.5, 0.5, 0.5, 0.5)
    kept = {key: table.configs[key] for key in ["a[level=1];b[level=0]"]}
    templates = build_templates(pipeline, replace(table, configs=kept), kinds)
    assert templates.variants.tolist() == [[1, 0]]


@pytest.mark.parametrize("missing", ["accuracy", "profile"])
def test_there_may_be_no_plan_at_all(missing: str) -> None:
    pipeline = _pipeline(CHAIN)
    kinds = [_kind(pipeline, b=-1.0 if missing == "profile" else 1.0)]
    templates = build_templates(pipeline, _table(pipeline, *([1.0] if missing == "profile" else [])), kinds)
    assert len(templates) == 0
    assert templates.used.shape == (0, 1)
    assert templates.paths.shape == (1, 0, 0)


def test_equal_kinds_are_taken_in_order() -> None:
    pipeline = _pipeline(CHAIN)
    cloud = _kind(pipeline, 2.0)
    everything = build_templates(pipeline, _table(pipeline, 1.0), [_kind(pipeline), cloud, cloud])
    assert (everything.used[:, 1] | ~everything.used[:, 2]).all()
    assert [0, 1, 2] in everything.placement.tolist()
    one = build_templates(pipeline, _table(pipeline, 1.0), [_kind(pipeline), cloud, cloud], max_remote=1)
    assert not one.used[:, 2].any()
    assert one.used[:, 1].any()
    assert everything.counts[0] == ("combinations", 14), (
        "partitions of 3 operators over the origin and 2 equals"
    )


def test_a_template_is_a_plan_on_the_sites_of_its_roles() -> None:
    pipeline = _pipeline({"a": (REQUEST,), "b": ("a",)}, levels=2)
    kinds = [_kind(pipeline), _kind(pipeline, 2.0)]
    templates = build_templates(pipeline, _table(pipeline, 0.2, 0.3, 0.4, 0.5), kinds)
    row = templates.placement.tolist().index([0, 1])
    plan = templates.plan(row, ["phone", "cloud"])
    assert plan.placement == {"a": "phone", "b": "cloud"}
    assert plan.config == {"a": {"level": 1}, "b": {"level": 1}}
    with pytest.raises(PlanningError, match="2 roles need as many sites, got 1"):
        templates.plan(row, ["phone"])


def test_spaces_that_are_too_large_say_so() -> None:
    case = random_case(3, CaseShape(variants=(3, 3, 2), chain=True, kinds=(0, 1)))
    with pytest.raises(PlanningError, match="has 18 configs, too many to enumerate"):
        build_templates(case.pipeline, case.accuracy, case.kinds, limit=17)
    with pytest.raises(PlanningError, match=r"more than 18 labels after 'op1'.*search it instead"):
        build_templates(case.pipeline, case.accuracy, case.kinds, limit=18)
    with pytest.raises(PlanningError, match="kind of the origin"):
        build_templates(case.pipeline, case.accuracy, [])


def _rows(templates: Templates) -> set[tuple[float, ...]]:
    paths = templates.paths.transpose(1, 0, 2).reshape(len(templates), -1)
    return {tuple(row) for row in np.hstack([templates.accuracy[:, np.newaxis], templates.totals, paths])}


@pytest.mark.parametrize("shape", [CaseShape(variants=(3, 3, 2), chain=True), CaseShape(variants=(2, 2, 2))])
def test_building_in_small_parts_changes_nothing(shape: CaseShape, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(5, shape)
    whole = build_templates(case.pipeline, case.accuracy, case.kinds)
    monkeypatch.setattr(build, "_BATCH", 7)
    monkeypatch.setattr(expand, "PART", 5)
    parts = build_templates(case.pipeline, case.accuracy, case.kinds)
    assert _rows(parts) == _rows(whole)
    assert parts.counts[-1] == whole.counts[-1]


def test_many_configs_are_compared_with_their_equals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(3, CaseShape(variants=(3, 3, 2), chain=True, kinds=(0, 1)))
    all_pairs = build_templates(case.pipeline, case.accuracy, case.kinds)
    monkeypatch.setattr(build, "_COMPARED_CONFIGS", 0)
    equals = build_templates(case.pipeline, case.accuracy, case.kinds)
    assert _rows(equals) == _rows(all_pairs)
    assert dict(equals.counts)["undominated after op1"] > dict(all_pairs.counts)["undominated after op1"]


def test_whatever_matters_changes_the_key() -> None:
    case = random_case(1, CaseShape(variants=(2, 2), kinds=(0, 1)))
    pipeline, accuracy, kinds = case.pipeline, case.accuracy, case.kinds
    config, found = next(iter(accuracy.configs.items()))
    better = replace(accuracy, configs={**accuracy.configs, config: replace(found, mean=0.875)})
    variant, measured = next(iter(kinds[1].operators.items()))
    slower = replace(measured, mean_s=measured.mean_s + 1)
    other = Kind(operators={**kinds[1].operators, variant: slower}, request_mean_bytes=0.0)
    keys = {
        templates_key(pipeline, accuracy, kinds, None),
        templates_key(pipeline, accuracy, kinds, 1),
        templates_key(pipeline, accuracy, kinds[:1], None),
        templates_key(pipeline, better, kinds, None),
        templates_key(pipeline, accuracy, (kinds[0], other), None),
        templates_key(replace(pipeline, digest="changed"), accuracy, kinds, None),
    }
    assert len(keys) == 6
