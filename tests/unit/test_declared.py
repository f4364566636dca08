"""What pipelines declare, in words: refusals that say what to change, baselines, and plans of last resort."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compass_coordinator.commands.plan_text import plan_text
from compass_coordinator.plan_document import plan_document
from compass_coordinator.planner import Binding, Candidates, best_local_plan, find_candidates
from compass_coordinator.planner.policy import Policy, anywhere, cloud_only, device_only, fixed
from compass_coordinator.planner.refusal import Refusal
from compass_coordinator.planning import FleetPlan, plan_fleet
from compass_coordinator.planning.result import Stopwatch
from compass_coordinator.planning.scaled import plan_at_scale
from compass_shared.check import ViolationKind, check_plan
from compass_shared.errors import InfeasibleError
from compass_shared.pipeline import Metric, Pipeline
from compass_shared.plan import Plan
from compass_shared.problem import Problem
from compass_shared.profile import Accuracy
from compass_shared.query import Query
from support.problems import LOOSE, FleetShape, random_problem, with_queries, with_slo


def _problem(**bound: tuple[str, ...]) -> tuple[Problem, Query]:
    """One loose query over op0 -> op1 -> op2 on a device, an edge server and a cloud, with constraints."""
    problem = random_problem(3, FleetShape(queries=1))
    problem = _with_pipeline(
        problem,
        lambda pipeline: replace(
            pipeline,
            operators=tuple(replace(op, must_run_on=bound.get(op.name, ())) for op in pipeline.operators),
        ),
    )
    query = replace(problem.queries[0], slo=LOOSE, rate_hz=0.1)
    return with_queries(problem, query), query


def _with_pipeline(problem: Problem, change: object) -> Problem:
    (pipeline,) = problem.pipelines.values()
    changed: Pipeline = change(pipeline)  # type: ignore[operator]
    return replace(problem, pipelines={pipeline.name: changed})


def _with_recall(problem: Problem, values: tuple[float, ...] = (0.2, 0.6, 0.9)) -> Problem:
    """Recall by the level of op2."""
    (pipeline,), (table,) = problem.pipelines.values(), problem.accuracy.values()
    recall = {
        pipeline.config_key(config): Accuracy(
            mean=values[int(config["op2"]["level"])], standard_error=0.0, count=10
        )
        for config in pipeline.configs()
    }
    metrics = (Metric(name="recall", function="made:up"),)
    return replace(
        problem,
        pipelines={pipeline.name: replace(pipeline, extra_metrics=metrics)},
        accuracy={pipeline.name: replace(table, others={"recall": recall})},
    )


def _plan_both(problem: Problem, policy: Policy = anywhere) -> list[FleetPlan]:
    return [plan_fleet(problem, policy), plan_at_scale(problem, policy, Stopwatch(lambda: 0.0))]


def test_a_query_that_starts_where_an_operator_must_not_run_is_told_so() -> None:
    problem, query = _problem(op1=("device",))
    problem = replace(
        problem, queries=(replace(query, origin="cloud-0"),), reachable={query.name: ("edge-0",)}
    )
    for fleet in _plan_both(problem):
        refusal = fleet.refusals[query.name]
        assert refusal.binding is Binding.PLACEMENT
        assert refusal.detail == (
            "operator 'op1' must run on device, but the query's origin 'cloud-0' is of tier cloud and it can "
            "use 'edge-0' (edge)"
        )
        assert query.name not in fleet.fallbacks


def test_an_operator_that_was_not_measured_where_it_must_run_is_named() -> None:
    problem, query = _problem(op1=("origin",))
    key = query.origin, query.pipeline
    profile = problem.profiles[key]
    operators = {name: found for name, found in profile.operators.items() if not name.startswith("op1")}
    problem = replace(problem, profiles={**problem.profiles, key: replace(profile, operators=operators)})
    for fleet in _plan_both(problem):
        assert (
            "'op1' must run on origin, and was not measured at device-0" in fleet.refusals[query.name].detail
        )


def test_there_is_no_plan_of_last_resort_for_what_must_not_run_at_the_origin() -> None:
    problem, query = _problem(op2=("cloud", "edge"))
    with pytest.raises(InfeasibleError, match="'op2' must run on cloud or edge, not at 'device-0'"):
        best_local_plan(problem, query)
    fleet = plan_fleet(problem)
    assert query.name in fleet.plans
    assert query.name not in fleet.fallbacks


def test_baselines_leave_what_is_bound_where_it_may_be() -> None:
    problem, query = _problem(op0=("cloud",), op1=("origin",))
    assert list(device_only(problem, query)) == [{"op0": "cloud-0", "op1": "device-0", "op2": "device-0"}]
    assert list(cloud_only(problem, query)) == [{"op0": "cloud-0", "op1": "device-0", "op2": "cloud-0"}]


def test_check_plan_names_the_operator_and_the_site_that_it_must_not_be_at() -> None:
    problem, query = _problem(op1=("origin",))
    found = find_candidates(problem, query)
    assert isinstance(found, Candidates)
    plan = found.plan(0)
    moved = Plan(config=plan.config, placement={**plan.placement, "op1": "cloud-0"})
    (violation,) = check_plan(problem, {query.name: moved})
    assert violation.kind is ViolationKind.CONSTRAINT
    assert "operator 'op1' must run on origin, not at 'cloud-0' (cloud)" in violation.text


def test_the_fixed_split_is_one_site_of_each_tier() -> None:
    problem = random_problem(3, FleetShape(queries=1, edges=2))
    query = problem.queries[0]
    split = {"op0": "device", "op1": "edge", "op2": "edge"}
    problem = _with_pipeline(problem, lambda pipeline: replace(pipeline, fixed_split=split))
    assert list(fixed(problem, query)) == [
        {"op0": "device-0", "op1": edge, "op2": edge} for edge in ("edge-0", "edge-1")
    ]
    from_worker = replace(query, origin="edge-1")
    assert list(fixed(problem, from_worker)) == [
        {"op0": "edge-1", "op1": edge, "op2": edge} for edge in ("edge-1", "edge-0")
    ]
    alone = replace(
        problem, reachable={query.name: ()}, queries=(replace(query, origin="cloud-0", slo=LOOSE),)
    )
    assert list(fixed(alone, query)) == []
    for fleet in _plan_both(alone, fixed):
        assert dict(fleet.plans[query.name].placement) == dict.fromkeys(split, "cloud-0")
    assert list(fixed(alone, replace(query, origin="cloud-0"))) == [dict.fromkeys(split, "cloud-0")]


@pytest.mark.parametrize(
    ("split", "bound", "detail"),
    [
        ({}, (), "declares no [fixed_split]"),
        ({"op0": "device", "op1": "edge", "op2": "edge"}, (), "needs a site of tier edge; it can use none"),
        ({"op0": "device", "op1": "cloud", "op2": "cloud"}, ("origin",), "its must_run_on forbids it"),
    ],
)
def test_a_fixed_split_that_a_query_cannot_have_says_why(
    split: dict[str, str], bound: tuple[str, ...], detail: str
) -> None:
    problem, query = _problem(op1=bound)
    problem = _with_pipeline(problem, lambda pipeline: replace(pipeline, fixed_split=split))
    problem = replace(problem, reachable={query.name: ("cloud-0",)})
    for fleet in _plan_both(problem, fixed):
        assert fleet.refusals[query.name].binding is Binding.PLACEMENT
        assert detail in fleet.refusals[query.name].detail


def test_a_floor_is_kept_and_shown() -> None:
    problem, query = _problem()
    problem = with_queries(_with_recall(problem), with_slo(query, metrics={"recall": 0.6}))
    for fleet in _plan_both(problem):
        plan = fleet.plans[query.name]
        assert plan.config["op2"]["level"] in (1, 2)
        assert plan.estimate is not None
        assert plan.estimate.metrics["recall"] in (0.6, 0.9)
        text = "\n".join(plan_text(problem, fleet))
        assert "recall >= 0.6" in text
        assert f"recall {plan.estimate.metrics['recall']:.3f}" in text
        document = plan_document(problem, fleet)
        shown = document["queries"][query.name]["plan"]["estimate"]["metrics"]  # type: ignore[index]
        assert shown == plan.estimate.metrics


def test_a_floor_that_no_config_reaches_is_refused_with_the_best_there_is() -> None:
    problem, query = _problem()
    asked = with_slo(query, metrics={"recall": 0.95})
    problem = with_queries(_with_recall(problem), asked)
    for fleet in _plan_both(problem):
        refusal = fleet.refusals[query.name]
        assert refusal.binding is Binding.METRIC
        assert dict(refusal.relaxed) == {"metrics.recall": 0.9}
        admitted = with_queries(
            problem, with_slo(query, metrics={"recall": refusal.relaxed["metrics.recall"]})
        )
        assert query.name in plan_fleet(admitted).plans


def test_a_metric_that_the_pipeline_does_not_have_is_named_and_stops_nobody_else() -> None:
    problem, query = _problem()
    other = replace(query, name="other")
    problem = with_queries(_with_recall(problem), with_slo(query, metrics={"recal": 0.5}), other)
    for fleet in _plan_both(problem):
        assert fleet.refusals[query.name].detail == (
            "its SLO sets a floor for the metric 'recal'; "
            "the extra metrics of pipeline 'sort-mail' are: recall"
        )
        assert "other" in fleet.plans
    (violation,) = check_plan(problem, {query.name: plan_fleet(problem).plans["other"]})
    assert violation.kind is ViolationKind.METRIC
    assert "'recal'" in violation.text


def test_an_operator_with_state_that_cannot_keep_up_is_said_to_be_the_reason() -> None:
    problem, query = _problem()
    problem = _with_pipeline(
        problem,
        lambda pipeline: replace(
            pipeline, operators=tuple(replace(op, stateful=op.name == "op2") for op in pipeline.operators)
        ),
    )
    roomy = {name: replace(site, cores=1e6) for name, site in problem.sites.items()}
    links = {ends: replace(link, bandwidth_bps=1e15) for ends, link in problem.links.items()}
    problem = replace(problem, sites=roomy, links=links, queries=(replace(query, rate_hz=1e4),))
    refusal = find_candidates(problem, problem.queries[0])
    assert isinstance(refusal, Refusal)
    assert refusal.binding is Binding.CAPACITY
    assert "keeps an operator with state, which takes one request after the other" in refusal.detail
    advised_hz = float(refusal.detail.rpartition("lower the rate to ")[2].removesuffix(" Hz"))
    slower = replace(problem.queries[0], rate_hz=advised_hz)
    assert isinstance(find_candidates(with_queries(problem, slower), slower), Candidates)
    for fleet in _plan_both(problem):
        assert "takes one request after the other" in fleet.refusals[query.name].detail
