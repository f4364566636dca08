"""The load that a fleet's chosen plans cause together, and what each of them does at it, as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from compass_coordinator.estimator import Floats, Indices, Waits
from compass_coordinator.planner.fleet.candidates import FleetCandidates
from compass_coordinator.planner.fleet.coefficients import Features, coefficients_of
from compass_coordinator.planner.fleet.evaluate import Evaluation, evaluate_pairs
from compass_coordinator.planner.fleet.tables import FleetTables
from compass_coordinator.planner.templates import Column, Quantity, Templates
from compass_shared.pipeline import variant_key
from compass_shared.problem import Problem, SiteLoad
from compass_shared.profile import OperatorProfile
from compass_shared.queueing import SiteMix
from compass_shared.segments import cut

_AT_ORIGIN = Column(0, Quantity.VISITS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Running:
    """Chosen candidates: entry i runs a share of one query's requests by one of its candidates."""

    query: Indices
    """(entries,)."""
    candidate: Indices
    """(entries,)."""
    fraction: Floats
    """(entries,) in (0, 1]."""

    def __len__(self) -> int:
        return len(self.query)

    def take(self, entries: Indices) -> Running:
        """Some of the entries, in the given order."""
        return Running(
            query=self.query[entries], candidate=self.candidate[entries], fraction=self.fraction[entries]
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoleWork:
    """What one request of each entry brings to the sites of its roles; unused roles have site -1."""

    site: Indices
    """(entries, roles) index into the fleet's sites."""
    busy_s: Floats
    """(entries, roles) core seconds."""
    second_moment_s2: Floats
    """(entries, roles) sum of E[S^2] over the segments there."""


def role_work(candidates: FleetCandidates, running: Running) -> RoleWork:
    """What chosen candidates bring to their sites.

    Segments follow from a template alone, so all entries that run by one template are counted at once.
    """
    roles = max((len(group.kinds) for group in candidates.space.groups), default=1)
    shape = len(running), roles
    work = RoleWork(
        site=np.full(shape, -1, dtype=np.int64), busy_s=np.zeros(shape), second_moment_s2=np.zeros(shape)
    )
    for entries, group, row in _by_template(candidates, running):
        instances = candidates.space.groups[group]
        features = candidates.space.features[group]
        speeds = candidates.space.tables.speeds[instances.pipeline]
        at = running.query[entries], running.candidate[entries]
        placed = instances.sites[candidates.instance[at]]
        work.site[entries, : placed.shape[1]] = placed
        for role, operators in _segments(features.templates, int(features.rows[row])):
            there = placed[:, role]
            compute_s, var_s2 = np.zeros(len(entries)), np.zeros(len(entries))
            for operator in operators:
                slowdown = speeds.slowdown(operator.speed_class, there)
                compute_s += slowdown * operator.mean_s + speeds.overhead_s[there]
                var_s2 += slowdown**2 * operator.var_s2
            work.busy_s[entries, role] += compute_s
            work.second_moment_s2[entries, role] += var_s2 + compute_s**2
    return work


def mixes_of(candidates: FleetCandidates, running: Running, work: RoleWork) -> dict[str, SiteMix]:
    """What entries together bring to each site that any of them visits, per second."""
    names = candidates.space.tables.sites.names
    rate_hz = candidates.space.tables.queries.rate_hz[running.query] * running.fraction
    busy_cores, second_moment_s = np.zeros(len(names)), np.zeros(len(names))
    used = work.site >= 0
    np.add.at(busy_cores, work.site[used], (rate_hz[:, np.newaxis] * work.busy_s)[used])
    np.add.at(second_moment_s, work.site[used], (rate_hz[:, np.newaxis] * work.second_moment_s2)[used])
    return {
        names[at]: SiteMix(busy_cores=float(busy_cores[at]), second_moment_s=float(second_moment_s[at]))
        for at in np.flatnonzero(busy_cores > 0)
    }


def resulting_mixes(candidates: FleetCandidates, running: Running) -> dict[str, SiteMix]:
    """What chosen plans together bring to each site that any of them visits."""
    return mixes_of(candidates, running, role_work(candidates, running))


def resulting_loads(problem: Problem, mixes: Mapping[str, SiteMix]) -> dict[str, SiteLoad]:
    """The load of every site that a mix runs on."""
    return {site: mix.load(problem.sites[site].cores) for site, mix in mixes.items()}


def reevaluate(
    candidates: FleetCandidates,
    running: Running,
    loads: Mapping[str, SiteLoad],
    at_origin: Waits | None = None,
) -> Evaluation:
    """What chosen plans do when visits meet these loads; one entry each, per request of the whole query.

    Args:
        candidates: Of the fleet.
        running: Which of them.
        loads: At all sites; those that are not listed have none.
        at_origin: Further waits of a visit to the entry's own origin, arrays ``(1, entries)``.
    """
    space = candidates.space
    tables = FleetTables.of(space.problem, loads)
    figures = {name: np.zeros(len(running)) for name in ("mean", "var", "p95", "cost")}
    slots = candidates.demands.amounts.shape[2]
    amounts = np.zeros((len(running), slots))
    group = candidates.group[running.query, running.candidate]
    for number in np.unique(group):
        entries = np.flatnonzero(group == number)
        at = running.query[entries], running.candidate[entries]
        features = space.features[number]
        made = coefficients_of(tables, space.groups[number].take(candidates.instance[at]), features)
        if at_origin is not None:
            mean_s, var_s2 = made.mean_s.copy(), made.var_s2.copy()
            mean_s[:, _column(features, features.mean_columns)] += at_origin.mean_s[0, entries, np.newaxis]
            var_s2[:, _column(features, features.var_columns)] += at_origin.var_s2[0, entries, np.newaxis]
            made = replace(made, mean_s=mean_s, var_s2=var_s2)
        found = evaluate_pairs(features, made, candidates.row[at])
        figures["mean"][entries] = found.latency_mean_s
        figures["var"][entries] = found.latency_var_s2
        figures["p95"][entries] = found.latency_p95_s
        figures["cost"][entries] = found.cost_usd
        amounts[entries, : found.amounts.shape[1]] = found.amounts
    return Evaluation(
        latency_mean_s=figures["mean"],
        latency_var_s2=figures["var"],
        latency_p95_s=figures["p95"],
        cost_usd=figures["cost"],
        amounts=amounts,
    )


def _column(features: Features, columns: Indices) -> Indices:
    """Where among some path columns the visits to the origin stand; none if nothing ever runs there."""
    paths = features.templates.path_columns
    return np.array([at for at, column in enumerate(columns) if paths[column] == _AT_ORIGIN], dtype=np.int64)


def _by_template(candidates: FleetCandidates, running: Running) -> Iterator[tuple[Indices, int, int]]:
    """Entries that run by the same template: entries, group, row of the group's features."""
    at = running.query, running.candidate
    group, row = candidates.group[at], candidates.row[at]
    order = np.lexsort((row, group))
    keys = np.stack([group[order], row[order]])
    starts = np.flatnonzero((np.diff(keys, axis=1, prepend=-1) != 0).any(axis=0))
    for entries in np.split(order, starts[1:]):
        if entries.size:
            yield entries, int(group[entries[0]]), int(row[entries[0]])


def _segments(templates: Templates, row: int) -> Iterator[tuple[int, tuple[OperatorProfile, ...]]]:
    """Segments of one template: its role, and its operators as they were measured at the role's kind."""
    operators = templates.pipeline.operators
    roles = {op.name: int(role) for op, role in zip(operators, templates.placement[row], strict=True)}
    variants = {
        op.name: variant_key(op.name, list(op.variants())[variant])
        for op, variant in zip(operators, templates.variants[row], strict=True)
    }
    placement = {name: str(role) for name, role in roles.items()}
    for segment in cut(templates.pipeline, placement, "0"):
        role = int(segment.site)
        measured = templates.kinds[role].operators
        yield role, tuple(measured[variants[name]] for name in segment.operators)
