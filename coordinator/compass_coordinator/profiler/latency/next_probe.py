"""Which variants to measure next, and where: those whose probe is likeliest to change what a query gets.

For a query with SLO limit L, weight w and chosen plan *, and a plan i with predicted variants,

* t_i is its p95 at the load that the chosen plans cause, if predictions were sure, and d_i² the variance of
  what they may be off together, the sum over its predicted operators of (rel_sd x mean)²;
* c_i is its cost, and e_i² the same of the difference to the chosen plan's cost, where operators that both
  plans run alike cancel. A plan is cheaper if it is so by more than a ``TRIFLE``.

What a probe could show, each with its probability (Phi: the normal distribution function):

1. the chosen plan misses its SLO: Phi((t_* - L) / d_*);
2. a cheaper plan (any, if none was chosen) that was taken to be too slow is not: Phi((L - t_i) / d_i);
3. a plan that is fast enough, yet dearer, is cheaper: Phi((c_* - c_i) / e_i).

The likeliest of these is what is at stake, w times its probability; it is shared out to the predictions that
it rests on in proportion to their variances. Per site and second of probing the stakes of all queries add up.
If less than ``delta`` of all weight is at stake, nothing is worth a probe.

Capacities are not looked at: whether more queries fit once a demand is known better is not foreseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from compass_coordinator.estimator import Floats, Indices, PlanSpace, Waits, latency, waits_at
from compass_coordinator.plan_space import build_space
from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planning.result import FleetPlan, unknown_to
from compass_coordinator.planning.searched import plan_count
from compass_coordinator.profiler.latency.completion import Prediction
from compass_coordinator.profiler.latency.transfer import PROBE_REPEATS, PROBE_SETUP_S
from compass_shared.evaluate import resulting_loads
from compass_shared.pipeline import variant_key
from compass_shared.plan import Plan
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.splitting import in_parts

DELTA = 0.01
"""Share of all weight that has to be at stake."""
TRIFLE = 0.01
"""A plan has to be cheaper by this share to matter."""
MOST_VARIANTS = 3
"""Asked of one site at a time: what they show may decide what is worth asking next."""
MOST_PLANS = 500_000
"""Looked at in one planning, heaviest queries first; the others have their turn when these are settled."""

Predictions = Mapping[tuple[str, str], Mapping[str, Prediction]]
"""(site, pipeline) -> variant -> how unsure its figures are."""

_Place = tuple[str, str]
"""Site and variant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Variants that are worth measuring at one site."""

    site: str
    pipeline: str
    variants: tuple[str, ...]
    """The most wanted first."""
    stake: float
    """Share of all weight whose plans may change."""
    probe_s: float
    """What measuring them takes, about."""


def next_probes(
    problem: Problem,
    plan: FleetPlan,
    predictions: Predictions,
    *,
    policy: Policy = anywhere,
    delta: float = DELTA,
) -> tuple[Wish, ...]:
    """Find what is worth measuring.

    Args:
        problem: What was planned.
        plan: What was chosen.
        predictions: The variants of its profiles that were not measured.
        policy: Placements that were considered.
        delta: Share of all weight below which nothing is worth a probe.

    Returns:
        At most one wish for each site, the best per second of probing first; none if too little is at stake.
    """
    if not predictions:
        return ()
    total = sum(query.weight for query in problem.queries)
    at_stake: dict[tuple[str, str], dict[str, float]] = {}
    for query, changes in _changes(problem, plan, predictions, policy):
        for (site, variant), probability in changes.items():
            of_site = at_stake.setdefault((site, query.pipeline), {})
            of_site[variant] = of_site.get(variant, 0.0) + query.weight * probability / total
    if sum(stake for of_site in at_stake.values() for stake in of_site.values()) < delta:
        return ()
    wishes = sorted(_wishes(problem, at_stake), key=lambda wish: (-wish.stake / wish.probe_s, wish.site))
    best: dict[str, Wish] = {}
    for wish in wishes:
        best.setdefault(wish.site, wish)
    return tuple(best.values())


def _wishes(problem: Problem, at_stake: Mapping[tuple[str, str], Mapping[str, float]]) -> Iterator[Wish]:
    """For each site and pipeline its best variants."""
    for (site, pipeline), mine in sorted(at_stake.items()):
        profile = problem.profiles[site, pipeline]
        probe_s = {key: PROBE_SETUP_S + PROBE_REPEATS * profile.operators[key].mean_s for key in mine}
        chosen = sorted(mine, key=lambda key: (-mine[key] / probe_s[key], key))[:MOST_VARIANTS]
        yield Wish(
            site=site,
            pipeline=pipeline,
            variants=tuple(chosen),
            stake=sum(mine[key] for key in chosen),
            probe_s=sum(probe_s[key] for key in chosen),
        )


def _changes(
    problem: Problem, plan: FleetPlan, predictions: Predictions, policy: Policy
) -> Iterator[tuple[Query, dict[_Place, float]]]:
    """For each query: (site, variant) -> probability that its probe changes what the query gets."""
    sure = _as_if_sure(problem, predictions)
    loads = resulting_loads(*in_parts(problem, plan.plans, plan.split))
    spaces: dict[tuple[str, str, tuple[str, ...]], _Unsure] = {}
    left = MOST_PLANS
    for query in sorted(problem.queries, key=lambda query: (-query.weight, query.name)):
        if unknown_to(problem, query) is not None:
            continue
        sites = problem.sites_for(query)
        count = plan_count(problem, query)
        if count > left or not any((site, query.pipeline) in predictions for site in sites):
            continue
        left -= count
        key = query.pipeline, query.origin, sites
        if key not in spaces:
            placements = tuple(policy(problem, query))
            spaces[key] = _unsure(
                problem,
                build_space(problem, query, placements),
                build_space(sure, query, placements),
                predictions,
            )
        yield query, spaces[key].changes(query, _chosen(plan, query), waits_at(problem, sites, loads))


def _chosen(plan: FleetPlan, query: Query) -> Plan | None:
    """A query's plan; of several, the one with most of its requests."""
    if query.name in plan.split:
        return max(plan.split[query.name], key=lambda share: share.fraction).plan
    return plan.plans.get(query.name)


def _as_if_sure(problem: Problem, predictions: Predictions) -> Problem:
    """The problem without what predictions add to variances for not being sure."""
    profiles = dict(problem.profiles)
    for key, found in predictions.items():
        operators = dict(profiles[key].operators)
        for variant, prediction in found.items():
            operators[variant] = replace(operators[variant], var_s2=prediction.var_s2)
        profiles[key] = replace(profiles[key], operators=operators)
    return replace(problem, profiles=profiles)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unsure:
    """Plans from one origin, and which predictions each rests on."""

    planned: PlanSpace
    """As they are planned with."""
    sure: PlanSpace
    """As if predictions were sure."""
    names: tuple[_Place, ...]
    """(site, variant) of each prediction; the last one stands for what was measured."""
    rests_on: Indices
    """(plans, operators) which prediction."""
    var_s2: Floats
    """(predictions,) of the mean time; 0 for what was measured."""
    var_usd2: Floats
    """(predictions,) of the cost of 1,000 requests."""

    def changes(self, query: Query, chosen: Plan | None, waits: Waits) -> dict[_Place, float]:
        """(site, variant) -> probability that its probe changes what the query gets."""
        cost = 1000 * self.planned.cost_usd
        able = (self.planned.accuracy >= query.slo.accuracy) & (cost <= query.slo.cost_usd_per_1000)
        limit_s = query.slo.latency_p95_s
        slow = ~(latency(self.planned, waits)[2] <= limit_s)
        fits = _chance(limit_s - latency(self.sure, waits)[2], self.var_s2[self.rests_on].sum(axis=1))
        at = None if chosen is None else self._row_of(chosen)
        if at is None:
            probability = np.where(able & slow, fits, 0.0)
        else:
            worth = (1 - TRIFLE) * cost[at]
            differ = self.rests_on != self.rests_on[at]
            both = self.var_usd2[self.rests_on] + self.var_usd2[self.rests_on[at]]
            cheaper = _chance(worth - cost, np.where(differ, both, 0.0).sum(axis=1))
            fits = np.where(cost < worth, fits, 0.0)
            probability = np.where(able, np.where(slow, fits, np.where(cost < worth, 0.0, cheaper)), 0.0)
            probability[at] = self._misses(at, limit_s, waits)
        best = int(np.argmax(probability))
        if not probability[best] > 0:
            return {}
        by_cost = at is not None and best != at and not slow[best]
        variances = self._cost_vars(best, at) if by_cost and at is not None else self._time_vars(best)
        shares = float(probability[best]) * variances / variances.sum()
        return {self.names[index]: float(shares[index]) for index in np.flatnonzero(shares)}

    def _misses(self, row: int, limit_s: float, waits: Waits) -> float:
        """Probability that a plan takes longer than it should."""
        found_s = latency(self.sure.take(np.array([row])), waits)[2]
        return float(_chance(found_s - limit_s, self.var_s2[self.rests_on[[row]]].sum(axis=1))[0])

    def _row_of(self, plan: Plan) -> int | None:
        """Which row a plan is; None if it is none of them."""
        if plan.config not in self.planned.configs or plan.placement not in self.planned.placements:
            return None
        config = self.planned.configs.index(plan.config)
        return self.planned.placements.index(plan.placement) * len(self.planned.configs) + config

    def _time_vars(self, row: int) -> Floats:
        """(predictions,) what each adds to the variance of a plan's time."""
        return self._counted(self.rests_on[row]) * self.var_s2

    def _cost_vars(self, row: int, other: int) -> Floats:
        """(predictions,) what each adds to the variance of two plans' difference in cost."""
        differ = self.rests_on[row] != self.rests_on[other]
        either = np.concatenate([self.rests_on[row][differ], self.rests_on[other][differ]])
        return self._counted(either) * self.var_usd2

    def _counted(self, predictions: Indices) -> Floats:
        return np.bincount(predictions, minlength=len(self.names)).astype(np.float64)


def _chance(ahead: Floats, var: Floats) -> Floats:
    """Probability that a normal error of these variances leaves something ahead; 0 without any error."""
    sd = np.sqrt(var)
    z = np.divide(ahead, sd, out=np.full_like(ahead, -np.inf), where=sd > 0)
    return np.asarray(np.nan_to_num(ndtr(z), nan=0.0))


def _unsure(problem: Problem, planned: PlanSpace, sure: PlanSpace, predictions: Predictions) -> _Unsure:
    """Look up which predictions each plan of a space rests on."""
    pipeline = planned.pipeline
    names: list[_Place] = []
    var_s2: list[float] = []
    var_usd2: list[float] = []
    index: dict[_Place, int] = {}
    for site in planned.sites:
        for variant, found in predictions.get((site, pipeline.name), {}).items():
            mean_s = problem.profiles[site, pipeline.name].operators[variant].mean_s
            index[site, variant] = len(names)
            names.append((site, variant))
            var_s2.append((found.rel_sd * mean_s) ** 2)
            var_usd2.append((1000 * problem.sites[site].compute_s_usd) ** 2 * var_s2[-1])
    nothing = len(names)
    rests_on = np.full((len(planned), len(pipeline.operators)), nothing)
    for column, operator in enumerate(pipeline.operators):
        keys = [variant_key(operator.name, config[operator.name]) for config in planned.configs]
        table = np.array([[index.get((site, key), nothing) for key in keys] for site in planned.sites])
        sites = np.array([planned.sites.index(placed[operator.name]) for placed in planned.placements])
        rests_on[:, column] = table[sites[planned.placement_of], planned.config_of]
    return _Unsure(
        planned=planned,
        sure=sure,
        names=(*names, ("", "")),
        rests_on=rests_on,
        var_s2=np.array([*var_s2, 0.0]),
        var_usd2=np.array([*var_usd2, 0.0]),
    )
