"""A space of listed plans says of each what a space of all plans says of it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from compass_coordinator.estimator import Waits, latency
from compass_coordinator.listed_plans import space_of
from compass_coordinator.plan_space import build_space
from compass_coordinator.planner import anywhere
from compass_shared.problem import Problem
from support.problem_strategies import problems


@given(problems(max_queries=1))
@settings(max_examples=30)
def test_listed_plans_are_priced_as_enumerated_ones_are(problem: Problem) -> None:
    query = problem.queries[0]
    whole = build_space(problem, query, anywhere(problem, query))
    known = np.flatnonzero(np.isfinite(whole.accuracy) & np.isfinite(whole.cost_usd))
    rows = known[:: max(1, len(known) // 7)]
    listed = space_of(problem, query, [whole.plan(int(row)) for row in rows])
    expected = whole.take(rows)
    assert listed.sites == expected.sites
    assert listed.resources == expected.resources
    assert [listed.plan(at) for at in range(len(rows))] == [expected.plan(at) for at in range(len(rows))]
    for name in ("accuracy", "cost_usd", "usage", "busy_s", "second_moment_s2"):
        np.testing.assert_allclose(getattr(listed, name), getattr(expected, name), rtol=1e-9, atol=1e-15)
    # Paths may be listed in another order; what they say together is the latency.
    waits = Waits(
        mean_s=np.linspace(0.1, 0.5, len(listed.sites))[:, np.newaxis],
        var_s2=np.linspace(0.02, 0.01, len(listed.sites))[:, np.newaxis],
    )
    for found, wanted in zip(latency(listed, waits), latency(expected, waits), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
