"""Why a query got its plan: figures recounted by the book, alternatives the best of their kind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from compass_coordinator.commands.plan_text import explanation_text
from compass_coordinator.planner.policy import device_only
from compass_coordinator.planning import FleetPlan, explanation, plan_fleet
from compass_coordinator.planning.explanation import Alternative, Explanation, explain_choice
from compass_shared.errors import PlanningError
from compass_shared.evaluate import evaluate_plan, resulting_loads
from compass_shared.plan import Estimate, Plan, PlanShare
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.site import Tier, cores_resource
from support.problems import FleetShape, random_problem, with_queries, with_slo

SHAPE = FleetShape(variants=(2, 1, 2), devices=2, queries=4, chain=False, tightness=2.0)
SEEDS = [pytest.param(seed, id=f"seed-{seed}") for seed in range(4)]


def evaluated(problem: Problem, plan: FleetPlan, query: Query, candidate: Plan) -> Estimate:
    """What a plan would do in place of the chosen one, by the book."""
    running = {**plan.plans, query.name: replace(candidate, estimate=None)}
    return evaluate_plan(problem, query, candidate, resulting_loads(problem, running))


def every_plan(problem: Problem, query: Query) -> Iterator[Plan]:
    pipeline = problem.pipelines[query.pipeline]
    names = [operator.name for operator in pipeline.operators]
    table = problem.accuracy[query.pipeline].configs
    for sites in itertools.product(problem.sites_for(query), repeat=len(names)):
        for config in pipeline.configs():
            if pipeline.config_key(config) in table:
                yield Plan(config=config, placement=dict(zip(names, sites, strict=True)))


def titled(found: Explanation) -> dict[str, Alternative]:
    return {alternative.title: alternative for alternative in found.alternatives}


def figures(alternative: Alternative) -> tuple[float | None, ...]:
    return tuple(said.value for said in alternative.slo)


@pytest.mark.parametrize("seed", SEEDS)
def test_figures_are_those_of_the_load_that_would_result(seed: int) -> None:
    problem = random_problem(seed, SHAPE)
    plan = plan_fleet(problem)
    for query in problem.queries:
        found = explain_choice(problem, plan, query.name)
        assert found.considered > 0
        for alternative in (*found.chosen, *found.alternatives):
            if alternative.title == "if all were free":
                expected = evaluate_plan(problem, query, alternative.plan, {})
            else:
                expected = evaluated(problem, plan, query, alternative.plan)
            latency_s, accuracy, cost_usd = figures(alternative)
            if latency_s is None:
                assert expected.latency_p95_s == float("inf")
            else:
                assert latency_s == pytest.approx(expected.latency_p95_s)
            assert accuracy == pytest.approx(expected.accuracy)
            assert cost_usd == pytest.approx(expected.cost_usd_per_1000)
            assert alternative.cost_usd_per_s == pytest.approx(
                query.rate_hz * expected.cost_usd_per_1000 / 1000
            )


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_alternatives_are_the_best_in_their_respect(seed: int) -> None:
    problem = random_problem(seed, SHAPE)
    plan = plan_fleet(problem)
    query = problem.queries[0]
    found = titled(explain_choice(problem, plan, query.name))
    all_of_them = [(each, evaluated(problem, plan, query, each)) for each in every_plan(problem, query)]
    fastest_s, most_accurate, cheapest_usd = (
        figures(found[title])[at] for at, title in enumerate(("fastest", "most accurate", "cheapest"))
    )
    assert fastest_s == pytest.approx(min(estimate.latency_p95_s for _, estimate in all_of_them))
    assert most_accurate == pytest.approx(max(estimate.accuracy for _, estimate in all_of_them))
    assert cheapest_usd == pytest.approx(min(estimate.cost_usd_per_1000 for _, estimate in all_of_them))
    assert set(found["best on its device"].plan.placement.values()) == {query.origin}
    clouds = {site.name for site in problem.sites.values() if site.tier is Tier.CLOUD}
    assert set(found["best in the cloud"].plan.placement.values()) <= {query.origin, *clouds}
    if "if all were free" in found:
        assert found["if all were free"].meets_slo


def test_prices_charge_what_a_plan_takes_from_others() -> None:
    problem = random_problem(1, SHAPE)
    plan = plan_fleet(problem)
    name = next(iter(plan.plans))
    resource = cores_resource(plan.plans[name].placement["op0"])
    priced = replace(plan, prices={resource: 0.5, "cores@elsewhere": 9.0})
    found = explain_choice(problem, priced, name)
    (chosen,) = found.chosen
    (charge,) = [charge for charge in chosen.charges if charge.resource == resource]
    estimate = plan.plans[name].estimate
    assert estimate is not None
    assert charge.demand == pytest.approx(estimate.demand[resource])
    assert charge.value == chosen.charged == pytest.approx(0.5 * charge.demand)
    assert charge.missing == 0, "the chosen plans fit together"
    assert found.prices == {resource: 0.5}
    assert f"of {resource} at 0.5" in "\n".join(explanation_text(found))


def test_what_does_not_fit_beside_the_others_is_short_of_something() -> None:
    problem = random_problem(2, SHAPE)
    query = replace(problem.queries[0], rate_hz=50 * problem.queries[0].rate_hz)
    problem = with_queries(problem, query, *problem.queries[1:])
    plan = plan_fleet(problem)
    found = explain_choice(problem, plan, query.name)
    local = titled(found)["best on its device"]
    (charge,) = [charge for charge in local.charges if charge.resource == cores_resource(query.origin)]
    used = sum(
        other.estimate.demand.get(charge.resource, 0.0)
        for name, other in plan.plans.items()
        if name != query.name and other.estimate is not None
    )
    site = problem.sites[query.origin]
    assert charge.missing == pytest.approx(charge.demand + used - site.cores * site.utilisation_cap)
    assert figures(local)[0] is None
    assert "no room: " in "\n".join(explanation_text(found))
    assert "without end" in "\n".join(explanation_text(found))


def test_a_refused_query_has_a_reason_and_alternatives() -> None:
    problem = random_problem(3, SHAPE)
    query = with_slo(problem.queries[0], accuracy=1.0)
    problem = with_queries(problem, query)
    found = explain_choice(problem, plan_fleet(problem), query.name)
    assert found.chosen == ()
    assert found.refusal is not None
    assert "relax accuracy to" in found.refusal
    assert not any(alternative.meets_slo for alternative in found.alternatives)
    assert "if all were free" not in titled(found)
    text = "\n".join(explanation_text(found))
    assert "refused  " in text
    assert "MISSES by" in text


def test_a_split_query_has_several_chosen_plans() -> None:
    problem = random_problem(4, FleetShape(queries=1))
    query = replace(problem.queries[0], divisible=True)
    problem = with_queries(problem, query)
    whole = plan_fleet(problem).plans.get(query.name) or next(every_plan(problem, query))
    shares = tuple(
        PlanShare(plan=replace(whole, estimate=evaluate_plan(problem, query, whole, {})), fraction=fraction)
        for fraction in (0.5, 0.25)
    )
    plan = replace(plan_fleet(problem), plans={}, split={query.name: shares}, refusals={})
    found = explain_choice(problem, plan, query.name)
    assert [chosen.title for chosen in found.chosen] == ["chosen for 50%", "chosen for 25%"]


def test_a_policy_restricts_the_alternatives() -> None:
    problem = random_problem(0, SHAPE)
    query = problem.queries[0]
    found = explain_choice(problem, plan_fleet(problem, device_only), query.name, device_only)
    for alternative in found.alternatives:
        assert set(alternative.plan.placement.values()) == {query.origin}


def test_large_spaces_are_looked_at_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(0, SHAPE)
    query = problem.queries[0]
    plan = plan_fleet(problem)
    monkeypatch.setattr(explanation, "MAX_PLANS", 100)
    found = explain_choice(problem, plan, query.name)
    assert found.partial
    assert 0 < found.considered <= 100
    assert "one other site at a time" in "\n".join(explanation_text(found))
    monkeypatch.setattr(explanation, "MAX_PLANS", 1)
    assert explain_choice(problem, plan, query.name).alternatives == ()


def test_an_unknown_query_is_an_error() -> None:
    problem = random_problem(0, SHAPE)
    with pytest.raises(PlanningError, match="no query is called 'moon'"):
        explain_choice(problem, plan_fleet(problem), "moon")
