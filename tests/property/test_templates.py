"""Templates lose nothing: the best of them is the best of all plans, for any query, SLO and prices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_coordinator.planner.templates import Box, Range, Templates, build_templates, prune_for_box
from compass_coordinator.planner.templates.columns import TOTALS, Column, path_columns
from compass_shared.plan import Estimate, Plan
from compass_shared.problem import Z95
from compass_shared.query import Slo
from support.problem_strategies import seeds
from support.template_cases import (
    CLASSES,
    Case,
    CaseShape,
    best,
    binding_slo,
    features,
    random_case,
    resource_prices,
)


@st.composite
def shapes(draw: st.DrawFn, *, exact: bool = True) -> CaseShape:
    """Chains, forks and joins of up to four operators over up to three roles."""
    return CaseShape(
        variants=draw(
            st.sampled_from([(2, 2), (3, 2), (2, 2, 2), (1, 3, 1), (2, 1, 2, 1), (1, 2, 1, 1), (1, 1, 1, 1)])
        ),
        chain=draw(st.booleans()),
        kinds=draw(st.sampled_from([(0, 1), (0, 1, 2), (0, 1, 1), (0, 0, 1), (0,)])),
        measured_share=draw(st.sampled_from([1.0, 1.0, 0.8])),
        exact=exact,
    )


def _templates(case: Case, max_remote: int | None = None) -> Templates:
    return build_templates(case.pipeline, case.accuracy, case.kinds, max_remote=max_remote)


def _placed(case: Case, templates: Templates, rows: Sequence[int]) -> list[Estimate]:
    """Of these templates on all sites that they can be put on."""
    return [case.estimate(templates.plan(row, sites)) for row in rows for sites in case.mappings()]


def _looser(slo: Slo) -> Slo:
    """An objective that a plan meets to the last digit may be missed in it by the plan's equal."""
    return Slo(
        latency_p95_s=slo.latency_p95_s * (1 + 1e-12),
        accuracy=slo.accuracy,
        cost_usd_per_1000=slo.cost_usd_per_1000 * (1 + 1e-12),
    )


@settings(max_examples=40)
@given(shapes(), seeds, st.sampled_from([None, None, 1]))
def test_the_best_template_is_the_best_plan_exactly(
    shape: CaseShape, seed: int, max_remote: int | None
) -> None:
    case = random_case(seed, shape)
    templates = _templates(case, max_remote)
    everything = [case.estimate(plan) for plan in case.plans(max_remote)]
    kept = _placed(case, templates, range(len(templates)))
    assert bool(everything) == bool(kept)
    rng = Random(seed)
    for _ in range(12 if everything else 0):
        slo, prices = binding_slo(rng, everything), resource_prices(rng, everything)
        assert best(kept, slo, prices) == best(everything, slo, prices)


@settings(max_examples=15)
@given(shapes(exact=False), seeds)
def test_the_best_template_is_the_best_plan_with_any_figures_and_waits(shape: CaseShape, seed: int) -> None:
    case = random_case(seed, shape)
    templates = _templates(case)
    everything = [case.estimate(plan) for plan in case.plans()]
    kept = _placed(case, templates, range(len(templates)))
    rng = Random(seed)
    for _ in range(12 if everything else 0):
        slo, prices = binding_slo(rng, everything), resource_prices(rng, everything)
        wanted = best(everything, slo, prices)
        assert math.isinf(wanted) or best(kept, _looser(slo), prices) <= wanted * (1 + 1e-9)


@settings(max_examples=25)
@given(shapes(exact=False), seeds)
def test_features_and_coefficients_make_the_estimate(shape: CaseShape, seed: int) -> None:
    case = random_case(seed, shape)
    templates = _templates(case)
    for sites in case.mappings():
        mean, var = _coefficients(case, templates, sites)
        mean_s, var_s2 = templates.paths @ mean, templates.paths @ var
        p95_s = (mean_s + Z95 * np.sqrt(var_s2)).max(axis=0)
        for row in range(0, len(templates), 5):
            wanted = case.estimate(templates.plan(row, sites))
            assert p95_s[row] == pytest.approx(wanted.latency_p95_s, rel=1e-9)
            assert templates.accuracy[row] == wanted.accuracy
            assert _demand(case, templates, row, sites) == pytest.approx(
                {name: amount for name, amount in wanted.demand.items() if amount}, rel=1e-9
            )


@settings(max_examples=40)
@given(shapes(), seeds)
def test_templates_are_the_undominated_of_all_plans_one_by_one(shape: CaseShape, seed: int) -> None:
    distinct = replace(shape, kinds=tuple(range(min(2, len(shape.kinds)))))
    case = random_case(seed, distinct)
    templates = _templates(case)
    columns = path_columns(len(case.kinds), CLASSES)
    everything = {_figures(case, plan, columns) for plan in case.plans()}
    undominated = {
        one for one in everything if not any(_dominates(other, one) and other != one for other in everything)
    }
    plans = [templates.plan(row, case.sites) for row in range(len(templates))]
    found = [_figures(case, plan, columns) for plan in plans]
    assert len(set(found)) == len(found), "of equal plans one is kept"
    assert set(found) == undominated


@settings(max_examples=40)
@given(shapes(), seeds, st.integers(1, 3))
def test_pruning_for_a_group_of_queries_loses_nothing_to_any_of_them(
    shape: CaseShape, seed: int, queries: int
) -> None:
    group = [random_case(seed, shape, sites_seed=number) for number in range(queries)]
    templates = _templates(group[0])
    rng = Random(seed)
    rows = range(len(templates))
    everything = [[case.estimate(templates.plan(row, case.sites)) for row in rows] for case in group]
    if not len(templates):
        return
    slos = [binding_slo(rng, estimates) for estimates in everything]
    kept = prune_for_box(
        templates,
        _box(group, templates),
        accuracy_levels=rng.choice([None, [slo.accuracy for slo in slos]]),
        latency_p95_s=rng.choice([None, max(slo.latency_p95_s for slo in slos)]),
    )
    for estimates, slo in zip(everything, slos, strict=True):
        prices = resource_prices(rng, estimates)
        assert best([estimates[row] for row in kept], slo, prices) == best(estimates, slo, prices)


Figures = tuple[float, tuple[float, ...], frozenset[tuple[float, ...]]]
"""Accuracy, totals, and the paths that are worst in some way."""


def _figures(case: Case, plan: Plan, columns: Sequence[Column]) -> Figures:
    whole, *ways = (tuple(way) for way in features(case, plan, columns))
    worst = frozenset(way for way in ways if not any(_no_more(way, other) and way != other for other in ways))
    totals = tuple(value for value, column in zip(whole, columns, strict=True) if column.quantity in TOTALS)
    return case.estimate(plan).accuracy, totals, worst


def _dominates(one: Figures, other: Figures) -> bool:
    return (
        one[0] >= other[0]
        and _no_more(one[1], other[1])
        and all(any(_no_more(path, theirs) for theirs in other[2]) for path in one[2])
    )


def _no_more(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))


def _coefficients(case: Case, templates: Templates, sites: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    both = [case.coefficients(column, sites) for column in templates.path_columns]
    return np.array([mean for mean, _ in both]), np.array([var for _, var in both])


def _box(group: Sequence[Case], templates: Templates) -> Box:
    both = [_coefficients(case, templates, case.sites) for case in group]
    seconds = [
        [case.coefficients(column, case.sites)[0] for column in templates.total_columns] for case in group
    ]
    return Box(
        mean=Range.over(np.array([mean for mean, _ in both])),
        var=Range.over(np.array([var for _, var in both])),
        seconds=Range.over(np.array(seconds)),
    )


def _demand(case: Case, templates: Templates, row: int, sites: Sequence[str]) -> dict[str, float]:
    demand: dict[str, float] = {}
    for column, amount in zip(templates.total_columns, templates.totals[row], strict=True):
        site = sites[column.role]
        name = {"up": f"link@{sites[0]}>{site}", "down": f"link@{site}>{sites[0]}"}.get(
            column.quantity.value, f"cores@{site}"
        )
        scale = 1.0 if name.startswith("link") else case.coefficients(column, sites)[0]
        demand[name] = demand.get(name, 0.0) + case.query.rate_hz * scale * amount
    return {name: amount for name, amount in demand.items() if amount}
