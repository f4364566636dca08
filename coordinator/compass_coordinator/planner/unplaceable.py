"""Queries that no placement is allowed for, or no config, whatever the figures say: why, in words."""

from __future__ import annotations

import numpy as np

from compass_coordinator.planner.policy import Policy, anywhere, cloud_only, fixed
from compass_coordinator.planner.refusal import Binding, Refusal
from compass_shared.evaluate import pipeline_of
from compass_shared.pipeline import Operator, variant_key
from compass_shared.problem import Problem
from compass_shared.query import Query


def unplaceable(problem: Problem, query: Query, policy: Policy = anywhere) -> Refusal | None:
    """Why a query may not run anywhere under a policy; None if there is a placement that it may have.

    Args:
        problem: Sites, links and profiles.
        query: Its pipeline and origin are known.
        policy: Placements to consider.

    Raises:
        PlanningError: If they are not.
    """
    for operator in pipeline_of(problem, query).operators:
        if (detail := _nowhere(problem, query, operator)) is not None:
            return Refusal(query=query.name, binding=Binding.PLACEMENT, detail=detail)
    if policy is anywhere or next(policy(problem, query), None) is not None:
        return None
    return Refusal(query=query.name, binding=Binding.PLACEMENT, detail=_forbidden(problem, query, policy))


def below_floors(problem: Problem, query: Query) -> Refusal | None:
    """Why no config reaches all floors that a query's SLO sets for extra metrics; None if one does."""
    table, known = problem.accuracy_for(query), problem.accuracy.get(query.pipeline)
    if table is None or known is None or table.configs or not known.configs:
        return None
    for name, least in query.slo.metrics.items():
        others = known.others.get(name, {})
        best = max((others[key].mean for key in known.configs if key in others), default=np.nan)
        if not best >= least:
            detail = f"no config reaches {name} {least:g}: the best has {best:.4g}"
            return Refusal(
                query=query.name,
                binding=Binding.METRIC,
                detail=detail,
                relaxed={f"metrics.{name}": float(best)},
            )
    wanted = " and ".join(f"{name} {least:g}" for name, least in query.slo.metrics.items())
    return Refusal(query=query.name, binding=Binding.METRIC, detail=f"no config reaches {wanted} at once")


def _nowhere(problem: Problem, query: Query, operator: Operator) -> str | None:
    """Why an operator with a placement constraint has no site."""
    if not operator.must_run_on:
        return None
    places = " or ".join(operator.must_run_on)
    allowed = problem.sites_of(query, operator)
    if not allowed:
        others = problem.sites_for(query)[1:]
        reached = (
            ", ".join(f"{site!r} ({problem.sites[site].tier.value})" for site in others) or "no other site"
        )
        origin = problem.sites[query.origin]
        return (
            f"operator {operator.name!r} must run on {places}, but the query's origin {query.origin!r} is of "
            f"tier {origin.tier.value} and it can use {reached}"
        )
    keys = [variant_key(operator.name, knobs) for knobs in operator.variants()]
    profiles = [problem.profiles.get((site, query.pipeline)) for site in allowed]
    if any(key in profile.operators for profile in profiles if profile is not None for key in keys):
        return None
    return (
        f"operator {operator.name!r} must run on {places}, and was not measured at {', '.join(allowed)}: "
        "measure it there"
    )


def _forbidden(problem: Problem, query: Query, policy: Policy) -> str:
    """Why a baseline has no placement for a query."""
    pipeline = pipeline_of(problem, query)
    if policy is not fixed:
        return f"it can use no {'cloud site' if policy is cloud_only else 'site that its policy allows'}"
    if not pipeline.fixed_split:
        return (
            f"pipeline {pipeline.name!r} declares no [fixed_split], which the policy 'fixed' goes by: "
            "give its pipeline.toml one, or plan by another policy"
        )
    tiers = {problem.sites[site].tier.value for site in problem.sites_for(query)} | {"device"}
    if missing := sorted(set(pipeline.fixed_split.values()) - tiers):
        return (
            f"[fixed_split] of pipeline {pipeline.name!r} needs a site of tier {missing[0]}; it can use none"
        )
    return f"[fixed_split] of pipeline {pipeline.name!r} puts an operator where its must_run_on forbids it"
