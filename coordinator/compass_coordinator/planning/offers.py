"""Plans offered to every query, as the dense arrays that the outer steps around the matcher take."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compass_coordinator.estimator import Floats, Indices, PlanSpace, estimate, waits_at
from compass_coordinator.planner.brute_force import Candidates, serving, stacked
from compass_coordinator.planner.dominance import undominated
from compass_coordinator.planner.fleet.candidates import FleetCandidates, can_run_out
from compass_coordinator.planning.settling import Spaces
from compass_shared.errors import PlanningError
from compass_shared.pipeline import variant_key
from compass_shared.problem import Problem, SiteLoad
from compass_shared.query import Query

MAX_ENTRIES = 400_000_000
"""Of the demands: 3.2 GB."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Offers:
    """Plans offered to every query."""

    values: Floats
    """(queries, plans) the query's weight, -inf where there is no plan."""
    costs: Floats
    """(queries, plans) USD per second."""
    demands: Floats
    """(queries, plans, columns)."""
    columns: Indices
    """(columns,) resources of the fleet that could run out."""
    uses: Indices
    """(queries, plans, operators) index into ``items``, -1 fills up."""
    items: tuple[tuple[str, str, str], ...]
    """Site, pipeline, variant key."""


def offers_of(sets: Sequence[FleetCandidates], *, always: Sequence[int] = ()) -> Offers:
    """Candidates of one fleet, found under several conditions, side by side.

    Args:
        sets: Of problems with the same sites, links and queries.
        always: Resources that get a column even if they cannot run out.

    Raises:
        PlanningError: If the arrays would not fit into memory.
    """
    first = sets[0]
    short = np.union1d(_short(sets), np.array(always, dtype=np.int64)).astype(np.int64)
    plans = sum(found.values.shape[1] for found in sets)
    if len(first.values) * plans * max(1, len(short)) > MAX_ENTRIES:
        raise PlanningError(
            f"{len(first.values)} queries and {len(short)} scarce resources are too many to plan memory "
            "or units for; plan parts of the fleet one by one"
        )
    number: dict[tuple[str, str, str], int] = {}
    uses = []
    for found in sets:
        local, labels = found.hosted()
        renumber = [number.setdefault(label, len(number)) for label in labels]
        uses.append(np.array([*renumber, -1], dtype=np.int64)[local])
    width = max(used.shape[2] for used in uses)
    padded = [np.pad(used, ((0, 0), (0, 0), (0, width - used.shape[2])), constant_values=-1) for used in uses]
    return Offers(
        values=np.concatenate([found.values for found in sets], axis=1),
        costs=np.concatenate([found.costs for found in sets], axis=1),
        demands=np.concatenate([_dense(found, short) for found in sets], axis=1),
        columns=short,
        uses=np.concatenate(padded, axis=1),
        items=tuple(number),
    )


def offers_of_spaces(
    problem: Problem, spaces: Spaces, loads: Mapping[str, SiteLoad], limited: Collection[str]
) -> Offers:
    """All plans that serve small fleets' queries and that no other plan over the same variants beats.

    Args:
        problem: The planning problem.
        spaces: Plans of every query.
        loads: To evaluate waiting at.
        limited: Sites whose variants are items.
    """
    number: dict[tuple[str, str, str], int] = {}
    found = {
        query.name: _by_items(problem, query, space, loads, limited, number)
        for query, space in spaces.values()
    }
    arrays = stacked([found[query.name][0] if query.name in found else None for query in problem.queries])
    width = max((used.shape[1] for _, used in found.values()), default=0)
    uses = np.full((*arrays.values.shape, width), -1, dtype=np.int64)
    for at, query in enumerate(problem.queries):
        if query.name in found:
            used = found[query.name][1]
            uses[at, : used.shape[0], : used.shape[1]] = used
    order = {resource: at for at, resource in enumerate(problem.capacities())}
    return Offers(
        values=arrays.values,
        costs=arrays.costs,
        demands=arrays.demands,
        columns=np.array([order[resource] for resource in arrays.resources], dtype=np.int64),
        uses=uses,
        items=tuple(number),
    )


def _by_items(
    problem: Problem,
    query: Query,
    space: PlanSpace,
    loads: Mapping[str, SiteLoad],
    limited: Collection[str],
    number: dict[tuple[str, str, str], int],
) -> tuple[Candidates, Indices]:
    """Candidates among plans over the same items, for every set of items that some plan uses."""
    waits = waits_at(problem, space.sites, loads)
    space = space.take(serving(estimate(space, query, waits), query, problem.capacities()))
    used = np.array([_items(space, row, limited, number) for row in range(len(space))], dtype=np.int64)
    used = used.reshape(len(space), len(space.pipeline.operators))
    _, which = np.unique(np.sort(used, axis=1), axis=0, return_inverse=True)
    kept = [np.zeros(0, dtype=np.int64)]
    for group in range(int(which.max(initial=-1)) + 1):
        rows = np.flatnonzero(which.reshape(-1) == group)
        alike = space.take(rows)
        features = np.column_stack([alike.cost_usd, alike.usage])
        kept.append(rows[undominated(features)])
    rows = np.concatenate(kept)
    candidates = Candidates(
        query=query, space=space.take(rows), estimates=estimate(space.take(rows), query, waits)
    )
    return candidates, used[rows]


def _items(
    space: PlanSpace, row: int, limited: Collection[str], number: dict[tuple[str, str, str], int]
) -> list[int]:
    """Item of every operator of a plan, -1 where its site is not limited."""
    plan, items = space.plan(row), []
    for op in space.pipeline.operators:
        site, variant = plan.placement[op.name], variant_key(op.name, plan.config.get(op.name, {}))
        label = site, space.pipeline.name, variant
        items.append(number.setdefault(label, len(number)) if site in limited else -1)
    return items


def _short(sets: Sequence[FleetCandidates]) -> Indices:
    """Resources that could run out if every query took its thirstiest plan of all sets."""
    entries = [np.nonzero(found.demands.amounts) for found in sets]
    listed = list(zip(sets, entries, strict=True))
    return can_run_out(
        np.concatenate([entry[0] for entry in entries]),
        np.concatenate([found.demands.resources[entry] for found, entry in listed]).astype(np.int64),
        np.concatenate([found.demands.amounts[entry] for found, entry in listed]),
        sets[0].capacities,
    )


def _dense(found: FleetCandidates, columns: Indices) -> Floats:
    """(queries, plans, columns)."""
    queries, plans = found.values.shape
    place = np.full(len(found.capacities), len(columns))
    place[columns] = np.arange(len(columns))
    dense = np.zeros((queries, plans, len(columns) + 1))
    query = np.arange(queries)[:, np.newaxis]
    plan = np.arange(plans)[np.newaxis]
    for entry in range(found.demands.amounts.shape[2]):
        at = place[found.demands.resources[:, :, entry]]
        # A plan names a resource at most once, so nothing is counted over.
        dense[query, plan, at] += found.demands.amounts[:, :, entry]
    return dense[:, :, :-1]
