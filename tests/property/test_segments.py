"""Cutting any placed DAG: every operator once, no cycle, and values made, sent and needed consistently."""

from __future__ import annotations

import pytest
from hypothesis import given

from compass_shared.errors import PlanningError
from compass_shared.pipeline import REQUEST, Pipeline
from compass_shared.plan import Placement
from compass_shared.problem import Problem
from compass_shared.segments import Segment, cut
from support.problem_strategies import problems, seeds
from support.problems import FleetShape, random_plan, random_problem

Cut = tuple[Pipeline, Placement, str, tuple[Segment, ...]]


def _cut(problem: Problem, seed: int) -> Cut:
    query = problem.queries[0]
    placement = random_plan(problem, query, seed).placement
    pipeline = problem.pipelines[query.pipeline]
    return pipeline, placement, query.origin, cut(pipeline, placement, query.origin)


@given(problems(max_operators=7, max_variants=1, max_queries=1), seeds)
def test_every_operator_is_in_one_segment_at_its_site(problem: Problem, seed: int) -> None:
    pipeline, placement, _, segments = _cut(problem, seed)
    placed = [(name, segment.site) for segment in segments for name in segment.operators]
    assert sorted(placed) == sorted((op.name, placement[op.name]) for op in pipeline.operators)


@given(problems(max_operators=7, max_variants=1, max_queries=1), seeds)
def test_segments_can_run_in_order(problem: Problem, seed: int) -> None:
    pipeline, _, _, segments = _cut(problem, seed)
    made = {REQUEST}
    for position, segment in enumerate(segments):
        assert segment.index == position
        assert all(before < position for before in segment.after)
        assert set(segment.needs) <= made, "a value is needed before it was exported"
        inside = set(segment.needs)
        for name in segment.operators:
            assert set(pipeline.operator(name).inputs) <= inside, "an operator runs before its inputs"
            inside.add(name)
        made |= set(segment.exports)


@given(problems(max_operators=7, max_variants=1, max_queries=1), seeds)
def test_what_crosses_is_what_somebody_needs(problem: Problem, seed: int) -> None:
    pipeline, _, _, segments = _cut(problem, seed)
    home = {name: segment for segment in segments for name in segment.operators}
    for segment in segments:
        outside = {need for name in segment.operators for need in pipeline.operator(name).inputs} - set(
            segment.operators
        )
        assert set(segment.needs) == outside
        assert len(segment.needs) == len(set(segment.needs)), "each value is sent once"
        assert set(segment.after) == {home[need].index for need in outside - {REQUEST}}
        wanted = {need for other in segments if other is not segment for need in other.needs}
        assert set(segment.exports) == (wanted | {pipeline.output}) & set(segment.operators)


@given(problems(max_operators=7, max_variants=1, max_queries=1), seeds)
def test_neighbours_at_one_site_are_one_segment_unless_a_detour_parts_them(
    problem: Problem, seed: int
) -> None:
    pipeline, placement, origin, segments = _cut(problem, seed)
    home = {name: segment.index for segment in segments for name in segment.operators}
    site_of = {**placement, REQUEST: origin}
    for operator in pipeline.operators:
        ups = operator.inputs
        if REQUEST not in ups and all(site_of[up] == placement[operator.name] for up in ups):
            assert home[operator.name] in {home[up] for up in ups}


def test_there_and_back_again_is_three_segments() -> None:
    problem = random_problem(0, FleetShape(variants=(1, 1, 1)))
    pipeline = problem.pipelines[problem.queries[0].pipeline]
    segments = cut(pipeline, {"op0": "device-0", "op1": "cloud-0", "op2": "device-0"}, "device-0")
    assert [(s.site, s.operators, s.needs, s.exports, s.after) for s in segments] == [
        ("device-0", ("op0",), (REQUEST,), ("op0",), ()),
        ("cloud-0", ("op1",), ("op0",), ("op1",), (0,)),
        ("device-0", ("op2",), ("op1",), ("op2",), (1,)),
    ]


def test_an_operator_without_a_site_is_refused() -> None:
    problem = random_problem(0, FleetShape(variants=(1, 1)))
    with pytest.raises(PlanningError, match="'op1'"):
        cut(problem.pipelines[problem.queries[0].pipeline], {"op0": "device-0"}, "device-0")
