"""What one unit of each feature of a template means to each instance: seconds, dollars, demand.

A template's figures are sums of feature x coefficient. Features are the template's and the same for all
instances; coefficients are the instance's and the same for all templates:

    mean of a path   = path features  @ mean_s          (seconds)
    variance         = path features  @ var_s2
    cost a request   = total features @ cost_usd
    amount of slot j = total features of slot j @ work  (core seconds or bytes a request)

The *slots* of an instance are its resources in a fixed order: the origin's cores; then for each remote role
the cores there, the link up and the link down. The docstring of ``compass_shared.problem`` is the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.fleet.blocks import Boxes, block_order
from compass_coordinator.planner.fleet.grouping import Group
from compass_coordinator.planner.fleet.tables import FleetTables
from compass_coordinator.planner.templates import Column, Quantity, Templates
from compass_shared.problem import Z95

_UPWARD = (Quantity.UP, Quantity.UP_VAR, Quantity.UP_SQ)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """The templates of one pattern, laid out for products with coefficients."""

    templates: Templates
    rows: Indices
    """(n,) which of the templates."""
    accuracy: Floats
    """(n,)."""
    totals: Floats
    """(n, T)."""
    slot_of: Indices
    """(T,) slot that each total belongs to."""
    mean_columns: Indices
    """Path features that have a mean."""
    var_columns: Indices
    """Path features that have a variance."""
    means: Floats
    """(k, n, F1) the first of them."""
    variances: Floats
    """(k, n, F2) the second of them."""
    spreads: Floats
    """``Z95^2`` times that: what a slack must hold when it is squared."""
    blocks: Boxes
    regions: Boxes
    """Of blocks."""

    @classmethod
    def of(cls, templates: Templates, rows: Indices) -> Features:
        """Lay some of the templates out, block by block."""
        quantities = [column.quantity for column in templates.path_columns]
        timed = (Quantity.WORK, Quantity.CALLS, Quantity.VISITS, Quantity.UP, Quantity.DOWN)
        still = (Quantity.WORK, Quantity.CALLS, Quantity.UP, Quantity.DOWN)
        mean = np.array([at for at, found in enumerate(quantities) if found in timed], dtype=np.int64)
        var = np.array([at for at, found in enumerate(quantities) if found not in still], dtype=np.int64)
        rows, starts = block_order(templates, rows)
        accuracy, totals = templates.accuracy[rows], np.ascontiguousarray(templates.totals[rows])
        paths = templates.paths[:, rows]
        means, variances = np.ascontiguousarray(paths[:, :, mean]), np.ascontiguousarray(paths[:, :, var])
        spreads = Z95**2 * variances
        blocks = Boxes.of(accuracy, totals, means, spreads, starts)
        return cls(
            templates=templates,
            rows=rows,
            accuracy=accuracy,
            totals=totals,
            slot_of=np.array([_slot(column) for column in templates.total_columns], dtype=np.int64),
            mean_columns=mean,
            var_columns=var,
            means=means,
            variances=variances,
            spreads=spreads,
            blocks=blocks,
            regions=blocks.regions(),
        )

    def __len__(self) -> int:
        return len(self.accuracy)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        arrays = (self.rows, self.accuracy, self.totals, self.means, self.variances)
        return self.templates.nbytes + sum(array.nbytes for array in arrays)

    @property
    def slots(self) -> int:
        """Resources of one instance."""
        return 3 * len(self.templates.kinds) - 2

    @property
    def instance_bytes(self) -> int:
        """Memory that one instance's coefficients take."""
        columns = len(self.mean_columns) + len(self.var_columns) + 2 * len(self.slot_of) + 2 * self.slots
        return 8 * (columns + 5)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coefficients:
    """Of some instances of one pattern; limits that their plans must keep come along."""

    work: Floats
    """(instances, T) amount of the column's slot per unit."""
    cost_usd: Floats
    """(instances, T) per request."""
    mean_s: Floats
    """(instances, F1)."""
    var_s2: Floats
    """(instances, F2)."""
    resources: Indices
    """(instances, slots) resource of each slot."""
    room: Floats
    """(instances, slots) most that one request may use of each slot if all are to fit; inf if divisible."""
    latency_p95_s: Floats
    """(instances,) SLO, like the two below."""
    accuracy: Floats
    max_cost_usd: Floats
    """A request."""

    def take(self, rows: Indices) -> Coefficients:
        """Of some of the instances, in the given order."""
        return Coefficients(
            work=self.work.take(rows, axis=0),
            cost_usd=self.cost_usd.take(rows, axis=0),
            mean_s=self.mean_s.take(rows, axis=0),
            var_s2=self.var_s2.take(rows, axis=0),
            resources=self.resources.take(rows, axis=0),
            room=self.room.take(rows, axis=0),
            latency_p95_s=self.latency_p95_s.take(rows),
            accuracy=self.accuracy.take(rows),
            max_cost_usd=self.max_cost_usd.take(rows),
        )

    def __len__(self) -> int:
        return len(self.latency_p95_s)


def coefficients_of(tables: FleetTables, group: Group, features: Features) -> Coefficients:
    """Coefficients of all instances of a group for its templates' features."""
    maker = _Maker(tables, group)
    totals = features.templates.total_columns
    paths = features.templates.path_columns
    resources = _resources(tables, group)
    queries = tables.queries
    rate_hz = queries.rate_hz[group.query][:, np.newaxis]
    whole = ~queries.divisible[group.query][:, np.newaxis]
    return Coefficients(
        work=_stack([maker.work(column) for column in totals], len(group)),
        cost_usd=_stack([maker.cost_usd(column) for column in totals], len(group)),
        mean_s=_stack([maker.mean_s(paths[at]) for at in features.mean_columns], len(group)),
        var_s2=_stack([maker.var_s2(paths[at]) for at in features.var_columns], len(group)),
        resources=resources,
        room=np.where(whole, tables.capacities[resources] / rate_hz, np.inf),
        latency_p95_s=queries.latency_p95_s[group.query],
        accuracy=queries.accuracy[group.query],
        max_cost_usd=queries.cost_usd[group.query],
    )


@dataclass(frozen=True, slots=True)
class _Maker:
    tables: FleetTables
    group: Group

    def work(self, column: Column) -> Floats:
        """Core seconds or bytes per unit of a column."""
        site = self.group.sites[:, column.role]
        if column.quantity is Quantity.WORK:
            return self._slowdown(column)
        if column.quantity is Quantity.CALLS:
            return np.asarray(self.tables.speeds[self.group.pipeline].overhead_s[site])
        return np.ones(len(self.group))

    def cost_usd(self, column: Column) -> Floats:
        """Dollars per unit of a column."""
        sites = self.tables.sites
        site = self.group.sites[:, column.role]
        if column.quantity in (Quantity.WORK, Quantity.CALLS):
            return np.asarray(self.work(column) * sites.compute_s_usd[site])
        sender = self.group.sites[:, 0] if column.quantity is Quantity.UP else site
        return np.asarray(sites.egress_byte_usd[sender])

    def mean_s(self, column: Column) -> Floats:
        """Mean seconds per unit of a path's column."""
        if column.quantity is Quantity.VISITS:
            wait = self.tables.sites.wait_mean_s[self.group.sites[:, column.role]]
            return np.asarray(wait + self._call(column, self.tables.links.rtt_s))
        if column.quantity in (Quantity.UP, Quantity.DOWN):
            return np.asarray(self.tables.links.byte_s[self._link(column)])
        return self.work(column)

    def var_s2(self, column: Column) -> Floats:
        """Variance per unit of a path's column."""
        links = self.tables.links
        if column.quantity is Quantity.WORK_VAR:
            return self._slowdown(column) ** 2
        if column.quantity is Quantity.VISITS:
            wait = self.tables.sites.wait_var_s2[self.group.sites[:, column.role]]
            return np.asarray(wait + self._call(column, links.rtt_var_s2))
        if column.quantity in (Quantity.UP_VAR, Quantity.DOWN_VAR):
            return np.asarray(links.byte_s[self._link(column)] ** 2)
        return np.asarray(links.byte_rel_var[self._link(column)])

    def _slowdown(self, column: Column) -> Floats:
        speeds = self.tables.speeds[self.group.pipeline]
        return speeds.slowdown(column.speed_class, self.group.sites[:, column.role])

    def _call(self, column: Column, of_link: Floats) -> Floats | float:
        """Round trip of a call to a remote role, nothing for the origin."""
        return np.asarray(of_link[self.group.up[:, column.role - 1]]) if column.role else 0.0

    def _link(self, column: Column) -> Indices:
        links = self.group.up if column.quantity in _UPWARD else self.group.down
        return np.asarray(links[:, column.role - 1])


def _slot(column: Column) -> int:
    if column.role == 0:
        return 0
    within = {Quantity.UP: 1, Quantity.DOWN: 2}.get(column.quantity, 0)
    return 3 * column.role - 2 + within


def _resources(tables: FleetTables, group: Group) -> Indices:
    """Index of the resource of each slot, ``(instances, slots)``."""
    first_link = len(tables.sites.names)
    columns = [group.sites[:, 0]]
    for role in range(group.up.shape[1]):
        columns += [
            group.sites[:, role + 1],
            first_link + group.up[:, role],
            first_link + group.down[:, role],
        ]
    return np.stack(columns, axis=1)


def _stack(columns: Sequence[Floats], rows: int) -> Floats:
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0))
