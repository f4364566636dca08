"""Templates lose nothing: the best of them is the best of all plans, for any query, SLO and prices."""

from __future__ import annotations

import math
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from compass_coordinator.planner.templates import build_templates
from compass_shared.plan import Estimate
from compass_shared.query import Slo
from support.problem_strategies import seeds
from support.template_cases import Case, CaseShape, demand_price, random_case, resource_prices


@st.composite
def cases(draw: st.DrawFn, *, exact: bool = True) -> Case:
    """Chains, forks and joins of up to four operators over up to three roles."""
    kinds = draw(st.sampled_from([(0, 1), (0, 1, 2), (0, 1, 1), (0, 0, 1), (0,)]))
    variants = draw(st.sampled_from([(2, 2), (3, 2), (2, 2, 2), (1, 3, 1), (2, 1, 2, 1), (1, 2, 1, 1)]))
    shape = CaseShape(
        variants=variants,
        chain=draw(st.booleans()),
        kinds=kinds,
        measured_share=draw(st.sampled_from([1.0, 1.0, 0.8])),
        exact=exact,
    )
    return random_case(draw(seeds), shape, queries=1)


def _best(estimates: list[Estimate], slo: Slo, prices: dict[str, float]) -> float:
    return min(
        (
            estimate.cost_usd_per_1000 + demand_price(estimate, prices)
            for estimate in estimates
            if estimate.latency_p95_s <= slo.latency_p95_s
            and estimate.accuracy >= slo.accuracy
            and estimate.cost_usd_per_1000 <= slo.cost_usd_per_1000
        ),
        default=math.inf,
    )


def _objectives(rng: Random, estimates: list[Estimate]) -> list[Slo]:
    """Objectives that some plan just meets, so that each binds now and then."""

    def of_some() -> Slo:
        latency, accuracy, cost = (rng.choice(estimates) for _ in range(3))
        return Slo(
            latency_p95_s=rng.choice([latency.latency_p95_s, math.inf]),
            accuracy=rng.choice([accuracy.accuracy, 0.0]),
            cost_usd_per_1000=rng.choice([cost.cost_usd_per_1000, math.inf]),
        )

    return [of_some() for _ in range(12)]


def _both(case: Case, max_remote: int | None) -> tuple[list[Estimate], list[Estimate]]:
    """Estimates of all plans, and of all templates on all sites that they can be put on."""
    query = case.problem.queries[0]
    templates = build_templates(case.pipeline, case.accuracy, case.kinds, max_remote=max_remote)
    everything = [case.estimate(query, plan) for plan in case.plans(max_remote)]
    kept = [
        case.estimate(query, templates.plan(row, sites))
        for row in range(len(templates))
        for sites in case.mappings()
    ]
    return everything, kept


@settings(max_examples=60)
@given(cases(), seeds, st.sampled_from([None, None, 1]))
def test_the_best_template_is_the_best_plan_exactly(case: Case, seed: int, max_remote: int | None) -> None:
    everything, kept = _both(case, max_remote)
    assert bool(everything) == bool(kept)
    rng = Random(seed)
    for slo in _objectives(rng, everything) if everything else ():
        prices = resource_prices(rng, everything)
        assert _best(kept, slo, prices) == _best(everything, slo, prices)


@settings(max_examples=30)
@given(cases(exact=False), seeds)
def test_the_best_template_is_the_best_plan_with_any_figures_and_waiting(case: Case, seed: int) -> None:
    everything, kept = _both(case, None)
    rng = Random(seed)
    for slo in _objectives(rng, everything) if everything else ():
        prices = resource_prices(rng, everything)
        # An objective that a plan meets to the last digit may be missed in it by its equal.
        looser = Slo(
            latency_p95_s=slo.latency_p95_s * (1 + 1e-12),
            accuracy=slo.accuracy,
            cost_usd_per_1000=slo.cost_usd_per_1000 * (1 + 1e-12),
        )
        best = _best(everything, slo, prices)
        found = _best(kept, looser, prices)
        assert found <= best * (1 + 1e-9) if math.isfinite(best) else True
