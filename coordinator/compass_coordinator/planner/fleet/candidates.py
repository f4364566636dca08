"""Candidates of all queries of a fleet, as the arrays that a matcher takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.matcher.problem import SparseDemands
from compass_coordinator.planner.fleet.coefficients import coefficients_of
from compass_coordinator.planner.fleet.directions import cheapest_and_at, diverse, priced
from compass_coordinator.planner.fleet.evaluate import evaluate_pairs
from compass_coordinator.planner.fleet.hosted import hosted_items
from compass_coordinator.planner.fleet.pricing import NONE, Best, Directions
from compass_coordinator.planner.fleet.space import MEMORY_BYTES, Allowed, FleetSpace, TemplateCache
from compass_coordinator.planner.fleet.tatonnement import rough_prices
from compass_shared.errors import PlanningError
from compass_shared.evaluate import metrics_of
from compass_shared.plan import Estimate, Plan
from compass_shared.problem import Problem, SiteLoad

KEEP = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FleetCandidates:
    """For every query at most K plans, each of which meets the whole SLO and fits alone.

    Queries are those of the problem, in its order; those that no plan serves have none. Arrays are
    ``(queries, K)`` unless said otherwise; entries without a plan are zeros.
    """

    space: FleetSpace
    values: Floats
    """The query's weight; -inf where there is no plan."""
    costs: Floats
    """USD per second at the query's rate."""
    demands: SparseDemands
    """At the query's rate; resources are indices into ``resources``."""
    group: Indices
    """Of the instance; ``NONE`` where there is no plan, like the next two."""
    instance: Indices
    """Number in its group."""
    row: Indices
    """Template of the group."""
    latency_mean_s: Floats
    latency_var_s2: Floats
    latency_p95_s: Floats
    accuracy: Floats

    @property
    def resources(self) -> tuple[str, ...]:
        """Names of all resources of the fleet."""
        return self.space.tables.resources

    @property
    def capacities(self) -> Floats:
        """(resources,) what may be handed out."""
        return self.space.tables.capacities

    def plan(self, query: int, candidate: int) -> Plan:
        """One candidate with its estimate.

        Raises:
            PlanningError: If there is no such candidate.
        """
        at = query, candidate
        if self.group[at] == NONE:
            raise PlanningError(
                f"query {self.space.problem.queries[query].name!r} has no candidate {candidate}"
            )
        group, features = self.space.groups[self.group[at]], self.space.features[self.group[at]]
        names = self.space.tables.sites.names
        sites = [names[site] for site in group.sites[self.instance[at]]]
        plan = features.templates.plan(int(features.rows[self.row[at]]), sites)
        rate_hz = self.space.tables.queries.rate_hz[query]
        demand: dict[str, float] = {}
        for resource, amount in zip(self.demands.resources[at], self.demands.amounts[at], strict=True):
            if amount > 0:
                demand[self.resources[resource]] = float(amount)
        estimate = Estimate(
            latency_mean_s=float(self.latency_mean_s[at]),
            latency_var_s2=float(self.latency_var_s2[at]),
            latency_p95_s=float(self.latency_p95_s[at]),
            accuracy=float(self.accuracy[at]),
            cost_usd_per_1000=float(1000 * self.costs[at] / rate_hz),
            demand=demand,
            metrics=metrics_of(
                self.space.problem, group.pipeline, features.templates.pipeline.config_key(plan.config)
            ),
        )
        return Plan(config=plan.config, placement=plan.placement, estimate=estimate)

    def scarce(self) -> tuple[SparseDemands, Floats, Indices]:
        """Demands on the resources alone that could run out if every query took its thirstiest plan.

        Returns:
            Demands with resources renumbered; their capacities; their indices into ``resources``.
        """
        return _scarce(self.values, self.demands, self.capacities)

    def hosted(self) -> tuple[NDArray[np.int32], tuple[tuple[str, str, str], ...]]:
        """Which variants each candidate needs where.

        Returns:
            (queries, K, operators) indices of items, -1 for none; and the items: site, pipeline, variant key.
        """
        space = self.space
        return hosted_items(space.groups, space.features, space.tables, self.group, self.instance, self.row)


def find_fleet_candidates(
    problem: Problem,
    *,
    loads: Mapping[str, SiteLoad],
    keep: int = KEEP,
    memory_bytes: int = MEMORY_BYTES,
    templates: TemplateCache | None = None,
    prices: Floats | None = None,
    max_remote: int = 2,
    allowed: Allowed | None = None,
) -> FleetCandidates:
    """Plan all queries of a fleet at given loads.

    Args:
        problem: Sites, links, profiles, accuracy and queries; its own loads are not read.
        loads: To evaluate waiting at; sites that are not listed have none.
        keep: Most candidates of one query, >= 1.
        memory_bytes: Budget for the search; the result comes on top.
        templates: Templates found earlier; new ones are added.
        prices: (resources,) prices of an earlier match in value per unit of demand, in the order of
            ``FleetCandidates.resources``.
        max_remote: Most remote sites that one plan may use.
        allowed: Placement policy; None for all placements.
    """
    space = FleetSpace.of(
        problem,
        loads,
        TemplateCache() if templates is None else templates,
        max_remote=max_remote,
        memory_bytes=memory_bytes,
        allowed=allowed,
    )
    return candidates_of(space, keep=keep, prices=prices)


def candidates_of(space: FleetSpace, *, keep: int = KEEP, prices: Floats | None = None) -> FleetCandidates:
    """The best plan of every query in diverse directions: each once, the cheapest first.

    The plans that are best at the given prices come second; without any, those at rough prices of what is
    scarce: a match will want these. Plans over several remote sites are looked for in these two directions
    only: they are rarely best, and a match's own prices find the ones that are (``add_columns``).
    """
    spread = space.best(diverse(space))
    candidates = _assembled(space, *_distinct(spread, spread.score.shape[1]))
    if prices is None:
        demands, capacities, kept = candidates.scarce()
        prices = np.zeros(len(candidates.capacities))
        if kept.size:
            prices[kept] = rough_prices(candidates.values, demands, capacities)
    directions = cheapest_and_at(space, prices)
    wanted = space.best(directions, _known(candidates, directions))
    return _assembled(space, *_distinct(_joined(wanted, spread), keep))


def add_columns(candidates: FleetCandidates, prices: Floats) -> tuple[FleetCandidates, float]:
    """Column generation: what each query would choose from all its plans at the prices of a match.

    Args:
        candidates: That were matched.
        prices: (resources,) >= 0 in value per unit of demand.

    Returns:
        The candidates and, where a query likes another plan better, that one too; and a bound on the value of
        any match over all plans of all queries: ``prices @ capacities + sum over queries of max(0, weight -
        least prices @ demand)``.
    """
    space = candidates.space
    directions = priced(space, prices)
    best = space.best(directions, _known(candidates, directions))
    queries = space.tables.queries
    reduced = queries.weight - queries.rate_hz * best.score[:, 0]
    bound = float(prices @ space.tables.capacities + np.maximum(reduced, 0.0).sum())
    known = Best(
        score=np.where(candidates.group == NONE, np.inf, 0.0),
        group=candidates.group,
        instance=candidates.instance,
        row=candidates.row,
    )
    joined = _joined(known, best)
    return _assembled(space, *_distinct(joined, joined.score.shape[1])), bound


def _known(candidates: FleetCandidates, directions: Directions) -> Best:
    """The best of the candidates in some directions: what a search has to beat."""
    rate_hz = candidates.space.tables.queries.rate_hz
    everyone = np.arange(len(rate_hz))
    none = np.isneginf(candidates.values)
    scores, picks = [], []
    for weight, prices in zip(directions.cost_weight, directions.prices, strict=True):
        worth = (candidates.demands.amounts * prices.take(candidates.demands.resources)).sum(axis=2)
        score = np.where(none, np.inf, (worth + weight * candidates.costs) / rate_hz[:, np.newaxis])
        picks.append(score.argmin(axis=1))
        scores.append(score[everyone, picks[-1]])
    pick = np.stack(picks, axis=1)
    return Best(
        score=np.stack(scores, axis=1),
        group=np.take_along_axis(candidates.group, pick, axis=1),
        instance=np.take_along_axis(candidates.instance, pick, axis=1),
        row=np.take_along_axis(candidates.row, pick, axis=1),
    )


def _joined(*parts: Best) -> Best:
    """Directions of several searches, side by side."""
    return Best(
        score=np.concatenate([part.score for part in parts], axis=1),
        group=np.concatenate([part.group for part in parts], axis=1),
        instance=np.concatenate([part.instance for part in parts], axis=1),
        row=np.concatenate([part.row for part in parts], axis=1),
    )


def _distinct(best: Best, keep: int) -> tuple[Indices, Indices, Indices]:
    """Every plan that was found once, in the order of directions; at most ``keep`` a query.

    Returns:
        Group, instance and row, each ``(queries, K)``.
    """
    keys = (best.group << 48) | (best.instance << 22) | best.row
    new = best.group != NONE
    for later in range(1, keys.shape[1]):
        new[:, later] &= (keys[:, :later] != keys[:, later, np.newaxis]).all(axis=1)
    place = np.cumsum(new, axis=1) - 1
    query, way = np.nonzero(new & (place < keep))
    count = int(place.max(initial=-1)) + 1
    found = []
    for array in (best.group, best.instance, best.row):
        picked = np.full((len(keys), max(1, min(count, keep))), NONE, dtype=np.int64)
        picked[query, place[query, way]] = array[query, way]
        found.append(picked)
    return found[0], found[1], found[2]


def _assembled(space: FleetSpace, group: Indices, instance: Indices, row: Indices) -> FleetCandidates:
    """Evaluate the chosen plans."""
    shape = group.shape
    slots = max((features.slots for features in space.features), default=1)
    figures = {name: np.zeros(shape) for name in ("mean_s", "var_s2", "p95_s", "accuracy", "cost_usd")}
    amounts, resources = np.zeros((*shape, slots)), np.zeros((*shape, slots), dtype=np.int32)
    for number, (instances, features) in enumerate(zip(space.groups, space.features, strict=True)):
        at = np.nonzero(group == number)
        made = coefficients_of(space.tables, instances.take(instance[at]), features)
        found = evaluate_pairs(features, made, row[at])
        figures["mean_s"][at] = found.latency_mean_s
        figures["var_s2"][at] = found.latency_var_s2
        figures["p95_s"][at] = found.latency_p95_s
        figures["accuracy"][at] = features.accuracy[row[at]]
        figures["cost_usd"][at] = found.cost_usd
        amounts[..., : features.slots][at] = found.amounts
        resources[..., : features.slots][at] = made.resources
    queries = space.tables.queries
    return FleetCandidates(
        space=space,
        values=np.where(group == NONE, -np.inf, queries.weight[:, np.newaxis]),
        costs=figures["cost_usd"] * queries.rate_hz[:, np.newaxis],
        demands=SparseDemands(
            resources=resources, amounts=amounts * queries.rate_hz[:, np.newaxis, np.newaxis]
        ),
        group=group,
        instance=instance,
        row=row,
        latency_mean_s=figures["mean_s"],
        latency_var_s2=figures["var_s2"],
        latency_p95_s=figures["p95_s"],
        accuracy=figures["accuracy"],
    )


def can_run_out(query: Indices, resource: Indices, amount: Floats, capacities: Floats) -> Indices:
    """Resources that could run out if every query took what it can ask for at most of each.

    Args:
        query: (entries,) who asks.
        resource: (entries,) for what.
        amount: (entries,) how much, by some plan.
        capacities: (resources,).
    """
    key = query * len(capacities) + resource
    order = np.argsort(key)
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    most = np.maximum.reduceat(amount[order], starts) if starts.size else amount
    needed = np.bincount(resource[order][starts], weights=most, minlength=len(capacities))
    return np.flatnonzero(needed > capacities)


def _scarce(
    values: Floats, demands: SparseDemands, capacities: Floats
) -> tuple[SparseDemands, Floats, Indices]:
    present = (demands.amounts > 0) & ~np.isneginf(values)[:, :, np.newaxis]
    query, candidate, _ = np.nonzero(present)
    resource = demands.resources[present].astype(np.int64)
    amount = demands.amounts[present]
    kept = can_run_out(query, resource, amount, capacities)
    number = np.full(len(capacities), NONE)
    number[kept] = np.arange(len(kept))
    counts = number[resource] != NONE
    cell = (query * values.shape[1] + candidate)[counts]
    # Entries of one plan are neighbours: each gets the place after the one before it.
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    lengths = np.diff(np.append(first, len(cell)))
    place = np.arange(len(cell)) - np.repeat(first, lengths)
    shape = (*values.shape, max(1, int(lengths.max(initial=0))))
    renumbered, kept_amounts = np.zeros(shape, dtype=np.int32), np.zeros(shape)
    renumbered.reshape(-1, shape[2])[cell, place] = number[resource[counts]]
    kept_amounts.reshape(-1, shape[2])[cell, place] = amount[counts]
    return SparseDemands(resources=renumbered, amounts=kept_amounts), capacities[kept], kept
