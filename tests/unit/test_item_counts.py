"""Planning with other numbers of items than were measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compass_coordinator.item_counts import ItemCount, with_items
from compass_shared.errors import ConfigError
from compass_shared.evaluate import evaluate_plan
from compass_shared.problem import Problem
from support.kinds import of_one_kind
from support.problems import FleetShape, random_plan, random_problem


def _problem() -> Problem:
    """op1 works through op0's list: 2 items on average, 1 ms each, of whatever it takes."""
    problem = of_one_kind(random_problem(2, FleetShape(variants=(1, 2), queries=1)), 2)
    (pipeline,) = problem.pipelines.values()
    first, second = pipeline.operators
    shared = {
        key: replace(found, items_mean=2.0, items_var=0.5, item_s=1e-3) if key.startswith("op1") else found
        for key, found in next(iter(problem.profiles.values())).operators.items()
    }
    return replace(
        problem,
        pipelines={pipeline.name: replace(pipeline, operators=(first, replace(second, items="op0")))},
        profiles={key: replace(profile, operators=shared) for key, profile in problem.profiles.items()},
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("op1=6,2", ItemCount(operator="op1", mean=6.0, sd=2.0)),
        ("sort-mail/op1=0", ItemCount(operator="op1", pipeline="sort-mail", mean=0.0)),
    ],
)
def test_a_count_is_read(text: str, expected: ItemCount) -> None:
    assert ItemCount.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["op1", "=3", "op1=", "op1=many", "op1=-1", "op1=2,-1", "op1=nan", "op1=1,2,3"]
)
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not \\[PIPELINE/\\]OPERATOR=MEAN"):
        ItemCount.parse(text)


@pytest.mark.parametrize(("text", "var"), [("op1=7,3", 9.0), ("op1=7", 0.5 * 3.5**2)])
def test_means_and_variances_of_plans_move_by_the_law_of_total_variance(text: str, var: float) -> None:
    problem = _problem()
    changed = with_items(problem, [ItemCount.parse(text)])
    query = problem.queries[0]
    plan = random_plan(problem, query, 3)
    profile = problem.profiles[plan.placement["op1"], query.pipeline]
    key = next(key for key in profile.operators if key.startswith("op1"))
    slowdown = profile.slowdowns.get(profile.operators[key].speed_class, 1.0)
    before, after = (evaluate_plan(each, query, plan, {}) for each in (problem, changed))
    assert after.latency_mean_s - before.latency_mean_s == pytest.approx(slowdown * 1e-3 * (7 - 2))
    assert after.latency_var_s2 - before.latency_var_s2 == pytest.approx(slowdown**2 * 1e-6 * (var - 0.5))


def test_the_measured_count_changes_nothing_and_sites_of_a_kind_stay_of_one() -> None:
    problem = _problem()
    same = with_items(problem, [ItemCount.parse("op1=2")])
    assert same.profiles == problem.profiles
    assert len({id(profile.operators) for profile in same.profiles.values()}) == 1


def test_mistakes_name_the_fan_outs_there_are() -> None:
    problem = _problem()
    for text, said in (
        ("op0=3", "'op0' is no operator that works item by item; there are sort-mail/op1"),
        ("other/op1=3", "'other/op1' is no operator that works item by item"),
    ):
        with pytest.raises(ConfigError, match=said):
            with_items(problem, [ItemCount.parse(text)])
    (pipeline,) = problem.pipelines.values()
    twice = replace(problem, pipelines={**problem.pipelines, "again": replace(pipeline, name="again")})
    with pytest.raises(
        ConfigError, match="'op1' is in several pipelines; there are sort-mail/op1, again/op1"
    ):
        with_items(twice, [ItemCount.parse("op1=3")])
    uncounted = {
        key: replace(
            profile,
            operators={name: replace(found, items_mean=None) for name, found in profile.operators.items()},
        )
        for key, profile in problem.profiles.items()
    }
    with pytest.raises(ConfigError, match="no profile says how many items 'op1'"):
        with_items(replace(problem, profiles=uncounted), [ItemCount.parse("op1=3")])
