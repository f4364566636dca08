"""Why queries of a large fleet were left out."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from compass_coordinator.planner.brute_force import find_candidates
from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planner.refusal import Binding, Refusal
from compass_coordinator.planner.unplaceable import below_floors, unplaceable
from compass_coordinator.planning.alone import why_none
from compass_coordinator.planning.result import unknown_to
from compass_coordinator.planning.rounds import Match
from compass_coordinator.planning.searched import plan_count
from compass_shared.problem import Problem
from compass_shared.query import Query

MAX_PLANS = 300_000
"""Of one query, that are looked at one by one to explain why none serves it."""
EXPLAINED = 50
"""Queries without any plan whose refusal is looked into; the others are told how to ask."""


class Refuser:
    """Finds reasons, a bounded number of them by looking at all plans of a query.

    Args:
        problem: The planning problem.
        policy: Placements that were considered.
        relaxed: The match as if nobody waited.
        best: The match that was published.
    """

    def __init__(self, problem: Problem, policy: Policy, relaxed: Match, best: Match) -> None:
        self._problem = problem
        self._policy = policy
        self._relaxed = relaxed
        self._best = best

    def refusals(self, served: Collection[str]) -> dict[str, Refusal]:
        """A reason for every query that is not served."""
        has_plan = np.asarray(np.isfinite(self._best.candidates.values).any(axis=1))
        found: dict[str, Refusal] = {}
        explained = 0
        for at, query in enumerate(self._problem.queries):
            if query.name in served:
                continue
            if has_plan[at]:
                found[query.name] = self._no_room(self._best, query, at)
            else:
                found[query.name] = self._without_plan(self._relaxed, query, at, explained)
                explained += 1
        return found

    def _no_room(self, best: Match, query: Query, index: int) -> Refusal:
        """There are plans that meet the SLO, but others make more of what they need."""
        candidates = best.candidates
        usable = np.isfinite(candidates.values[index])
        resources, amounts = candidates.demands.resources[index], candidates.demands.amounts[index]
        worth = best.prices[resources] * amounts
        nearest = int(np.argmin(np.where(usable, worth.sum(axis=1), np.inf)))
        slot = int(np.argmax(worth[nearest]))
        name, needed = candidates.resources[resources[nearest, slot]], float(amounts[nearest, slot])
        total = float(worth[nearest].sum())
        if total > 0:
            detail = (
                f"its plan that takes least from others needs {needed:.4g} of {name}; what it needs serves "
                f"others of weight {total:.3g}, its own is {query.weight:g}"
            )
        else:
            nearest = int(np.argmin(np.where(usable, candidates.latency_p95_s[index], np.inf)))
            detail = (
                f"beside the queries served its fastest plan takes "
                f"{1e3 * candidates.latency_p95_s[index, nearest]:.4g} ms against "
                f"{1e3 * query.slo.latency_p95_s:.4g} ms; {query.origin} or others are too busy"
            )
        binding = Binding.CAPACITY if total > 0 else Binding.LATENCY
        return Refusal(
            query=query.name, binding=binding, detail=detail, nearest=candidates.plan(index, nearest)
        )

    def _without_plan(self, relaxed: Match, query: Query, index: int, number: int) -> Refusal:
        """No plan meets the SLO within the capacities at the loads that were assumed."""
        if (unknown := unknown_to(self._problem, query)) is not None:
            return Refusal(query=query.name, binding=Binding.PROFILE, detail=unknown)
        if (nowhere := unplaceable(self._problem, query, self._policy)) is not None:
            return nowhere
        if (short := below_floors(self._problem, query)) is not None:
            return short
        if np.isfinite(relaxed.candidates.values[index]).any():
            plan = relaxed.candidates.plan(index, 0)
            idle_s = plan.estimate.latency_p95_s if plan.estimate is not None else math.nan
            detail = (
                f"beside the queries served no plan is fast enough: its cheapest takes {1e3 * idle_s:.4g} ms "
                f"of {1e3 * query.slo.latency_p95_s:.4g} ms with no waiting"
            )
            return Refusal(query=query.name, binding=Binding.LATENCY, detail=detail, nearest=plan)
        if number < EXPLAINED:
            found = self._explained(relaxed, query, index)
            if found is not None:
                return found
        detail = f"no plan meets its SLO; `compass plan --explain {query.name}` says which objective binds"
        return Refusal(query=query.name, binding=Binding.LATENCY, detail=detail)

    def _explained(self, relaxed: Match, query: Query, index: int) -> Refusal | None:
        pipeline = self._problem.pipelines[query.pipeline]
        # Templates leave out what may not be used, so they cannot say that this is the reason.
        narrowed = bool(query.slo.metrics) or pipeline.stateful
        if self._policy is anywhere and not (narrowed and plan_count(self._problem, query) <= MAX_PLANS):
            return why_none(relaxed.candidates.space, index)
        found = find_candidates(replace(self._problem, loads={}), query, self._policy)
        return found if isinstance(found, Refusal) else None
