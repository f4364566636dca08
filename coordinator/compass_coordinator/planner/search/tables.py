"""What each operator adds to a plan at each site: the additive relaxation that the search computes with.

A plan's score, cost and demand are sums over its segments. For a chain they are sums over operators (*nodes*)
and over pairs of neighbours (*edges*): an edge whose ends stand at different sites moves a value, and on
arrival its segment waits. So are mean and variance of the latency. For any other DAG the sums run over

* a forest: every operator keeps one of its inputs as its parent, the other inputs' transfers are left out;
* for latency, the *spine*: one source-to-sink path; what else its segments may hold is left out.

A value that several operators read may be sent once for all of them, so each edge carries only its share.
What is left out is never negative: node and edge sums are equal to ``compass_shared.evaluate`` for a chain
and at most that for any DAG. This is what makes bounds of them.

Shapes: C channels, V variants of an operator, U of its parent, S sites.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, Indices
from compass_shared.evaluate import pipeline_of
from compass_shared.pipeline import REQUEST, Config, Knobs, Operator, Pipeline, variant_key
from compass_shared.plan import Placement
from compass_shared.problem import Problem, SiteLoad
from compass_shared.profile import OperatorProfile
from compass_shared.query import Query
from compass_shared.queueing import wait_at
from compass_shared.site import cores_resource, link_resource

SCORE, COST, MEAN, VAR, CORES = range(5)
"""Channels: US dollars per second at the query's rate and prices; US dollars, seconds and seconds squared per
request; from ``CORES`` on, demand: cores of every site, then bytes up to and down from every site."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tables:
    """The additive relaxation of one query's plans."""

    pipeline: Pipeline
    sites: tuple[str, ...]
    """Where operators may run: usable, and with a finite wait at the problem's loads."""
    variants: tuple[tuple[Knobs, ...], ...]
    """Knobs of every variant of every operator, in file order."""
    parent: tuple[int, ...]
    """Index of the operator's parent in the forest, -1 for a root."""
    node: tuple[Floats, ...]
    """Per operator (C, V, S)."""
    edge: tuple[Floats | None, ...]
    """Per operator (C, U, S, S): parent's variant, parent's site, own site; None for a root."""
    measured: tuple[NDArray[np.bool_], ...]
    """Per operator (V, S): where it was measured, may run, and keeps up with the query if it has state."""
    capacity: Floats
    """(C - CORES,): what the demand channels may reach."""
    exact: bool
    """Whether the sums are those of the definition: the pipeline is a chain."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Variants of every operator."""
        return tuple(len(listed) for listed in self.variants)

    def placeable(self, choice: Indices, sites: Indices) -> bool:
        """Whether every operator's variant may be used at its site."""
        return all(mask[at] for mask, at in zip(self.measured, zip(choice, sites, strict=True), strict=True))

    def config(self, choice: Indices) -> Config:
        """The config of a row of variant indices."""
        picked = zip(self.pipeline.operators, self.variants, choice, strict=True)
        return {operator.name: knobs[at] for operator, knobs, at in picked}

    def placement(self, sites: Indices) -> Placement:
        """The placement of a row of site indices."""
        names = (operator.name for operator in self.pipeline.operators)
        return {name: self.sites[at] for name, at in zip(names, sites, strict=True)}


def build_tables(problem: Problem, query: Query, prices: Mapping[str, float]) -> Tables:
    """Tabulate a query's operators.

    Args:
        problem: Profiles, links, site prices, and the loads at which waiting is evaluated.
        query: Gives pipeline, origin and rate.
        prices: Resource -> US dollars per unit of demand, on top of what plans cost.

    Raises:
        PlanningError: If the query's origin or pipeline is unknown.
    """
    return _Builder(problem, query, pipeline_of(problem, query)).build(prices)


@dataclass(slots=True)
class _Builder:
    problem: Problem
    query: Query
    pipeline: Pipeline
    sites: tuple[str, ...] = ()
    variants: dict[str, tuple[Knobs, ...]] = field(default_factory=dict)

    def build(self, prices: Mapping[str, float]) -> Tables:
        self.sites = tuple(
            name for name in self.problem.sites_for(self.query) if math.isfinite(self._wait(name)[0])
        )
        operators = self.pipeline.operators
        self.variants = {op.name: tuple(op.variants()) for op in operators}
        place = {op.name: index for index, op in enumerate(operators)}
        spine = self._spine()
        parent = [_parent(op, spine) for op in operators]
        weights = self._score_weights(prices)
        node, edge, measured = [], [], []
        for op, before in zip(operators, parent, strict=True):
            node.append(_scored(self._node(op, spine), weights))
            measured.append(self._measured_at(op))
            on_spine = op.name in spine and before in spine
            edge.append(None if before is None else _scored(self._edge(before, on_spine=on_spine), weights))
        return Tables(
            pipeline=self.pipeline,
            sites=self.sites,
            variants=tuple(self.variants[op.name] for op in operators),
            parent=tuple(-1 if before is None else place[before] for before in parent),
            node=tuple(node),
            edge=tuple(edge),
            measured=tuple(measured),
            capacity=self._capacity(),
            exact=spine == tuple(op.name for op in operators)
            and spine[-1] == self.pipeline.output
            and all(len(op.inputs) == 1 for op in operators),
        )

    def _spine(self) -> tuple[str, ...]:
        """The source-to-sink path with the most work, each operator at its fastest site."""
        best: dict[str, tuple[float, tuple[str, ...]]] = {}
        for op in self.pipeline.operators:
            before = [best[name] for name in op.inputs if name != REQUEST]
            work_s, path = max(before, default=(0.0, ()))
            best[op.name] = (work_s + self._typical_s(op), (*path, op.name))
        return max(best.values())[1]

    def _typical_s(self, op: Operator) -> float:
        times = []
        for knobs in self.variants[op.name]:
            found = [self._profile(op.name, knobs, site) for site in self.sites]
            times.append(min((at.mean_s for at in found if at is not None), default=0.0))
        return float(np.mean(times)) + 1e-9  # never nothing, so that the longest path ends at a sink

    def _node(self, op: Operator, spine: tuple[str, ...]) -> Floats:
        table = self._empty(op)
        consumers = sum(REQUEST in other.inputs for other in self.pipeline.operators)
        source = self.problem.profiles.get((self.query.origin, self.pipeline.name))
        for row, column, found in self._figures(op):
            cell = table[:, row, column]
            site = self.sites[column]
            remote = site != self.query.origin
            cell[CORES + column] += found.mean_s
            cell[COST] += found.mean_s * self.problem.sites[site].compute_s_usd
            if op.name in spine:
                cell[[MEAN, VAR]] += found.mean_s, found.var_s2
            if op.name == spine[0]:
                cell[[MEAN, VAR]] += self._arrival(site)
            if remote and REQUEST in op.inputs and source is not None:
                self._send(cell, column, source.request_mean_bytes / consumers, up=True)
                if op.name == spine[0]:
                    size = source.request_mean_bytes, source.request_var_bytes2
                    cell[[MEAN, VAR]] += self._transfer(size, self.query.origin, site)
            if remote and op.name == self.pipeline.output:
                self._send(cell, column, found.output_mean_bytes / self._uses(op.name), up=False)
                if op.name == spine[-1]:
                    size = found.output_mean_bytes, found.output_var_bytes2
                    cell[[MEAN, VAR]] += self._transfer(size, site, self.query.origin)
        return table

    def _edge(self, parent: str, *, on_spine: bool) -> Floats:
        op = self.pipeline.operator(parent)
        nodes = self._empty(op)
        table = np.zeros((*nodes.shape, len(self.sites)))
        origin = self.query.origin
        readers = sum(parent in other.inputs for other in self.pipeline.operators)
        for row, column, found in self._figures(op):
            size = found.output_mean_bytes, found.output_var_bytes2
            here = self.sites[column]
            for target, there in enumerate(self.sites):
                if there == here:
                    continue
                cell = table[:, row, column, target]
                if here != origin:
                    self._send(cell, column, size[0] / self._uses(parent), up=False)
                if there != origin:
                    self._send(cell, target, size[0] / readers, up=True)
                if on_spine:
                    cell[[MEAN, VAR]] += self._arrival(there)
                    if here != origin:
                        cell[[MEAN, VAR]] += self._transfer(size, here, origin)
                    if there != origin:
                        cell[[MEAN, VAR]] += self._transfer(size, origin, there)
        return table

    def _send(self, cell: Floats, column: int, size_bytes: float, *, up: bool) -> None:
        """Cost and demand of bytes up to, or down from, the site of a column."""
        sites = self.problem.sites
        sender = sites[self.query.origin if up else self.sites[column]]
        cell[COST] += size_bytes * sender.prices.egress_byte_usd
        cell[CORES + (1 if up else 2) * len(self.sites) + column] += size_bytes

    def _arrival(self, site: str) -> tuple[float, float]:
        """Mean and variance of the wait, and of the round trip, that a segment at a site begins with."""
        mean_s, var_s2 = self._wait(site)
        if site == self.query.origin:
            return mean_s, var_s2
        link = self.problem.links[self.query.origin, site]
        return mean_s + link.rtt_s, var_s2 + link.rtt_var_s2

    def _transfer(self, size: tuple[float, float], source: str, target: str) -> tuple[float, float]:
        link = self.problem.links[source, target]
        mean_s = size[0] / link.bandwidth_bps
        return mean_s, size[1] / link.bandwidth_bps**2 + (mean_s * link.bandwidth_rel_sd) ** 2

    def _wait(self, site: str) -> tuple[float, float]:
        idle = SiteLoad(utilisation=0.0, residual_s=0.0)
        wait = wait_at(self.problem.loads.get(site, idle), self.problem.sites[site].cores)
        return wait.mean_s, wait.var_s2

    def _uses(self, name: str) -> int:
        readers = sum(name in other.inputs for other in self.pipeline.operators)
        return readers + (name == self.pipeline.output)

    def _figures(self, op: Operator) -> Iterator[tuple[int, int, OperatorProfile]]:
        for row, knobs in enumerate(self.variants[op.name]):
            for column, site in enumerate(self.sites):
                found = self._profile(op.name, knobs, site)
                if found is not None:
                    yield row, column, found

    def _profile(self, operator: str, knobs: Knobs, site: str) -> OperatorProfile | None:
        profile = self.problem.profiles.get((site, self.pipeline.name))
        return None if profile is None else profile.measured(variant_key(operator, knobs))

    def _measured_at(self, op: Operator) -> NDArray[np.bool_]:
        mask = np.zeros((len(self.variants[op.name]), len(self.sites)), dtype=np.bool_)
        # Without a profile of its own the origin has no request size, and no plan can be priced.
        if (self.query.origin, self.pipeline.name) in self.problem.profiles:
            for row, column, found in self._figures(op):
                site = self.sites[column]
                mask[row, column] = self.problem.may_run(self.query, op, site) and (
                    not op.stateful or self.problem.keeps_up(self.query, found.mean_s, site)
                )
        return mask

    def _empty(self, op: Operator) -> Floats:
        return np.zeros((CORES + 3 * len(self.sites), len(self.variants[op.name]), len(self.sites)))

    def _resources(self) -> Iterator[str | None]:
        """Names of the demand channels, None for the origin's links to itself."""
        origin = self.query.origin
        yield from (cores_resource(site) for site in self.sites)
        for site in self.sites:
            yield None if site == origin else link_resource(origin, site)
        for site in self.sites:
            yield None if site == origin else link_resource(site, origin)

    def _capacity(self) -> Floats:
        """Per request, so that demand channels need no rate."""
        have = self.problem.capacities()
        return np.array([math.inf if name is None else have[name] for name in self._resources()]) / (
            self.query.rate_hz
        )

    def _score_weights(self, prices: Mapping[str, float]) -> Floats:
        priced = [0.0 if name is None else prices.get(name, 0.0) for name in self._resources()]
        return self.query.rate_hz * np.array([0.0, 1.0, 0.0, 0.0, *priced])


def _parent(op: Operator, spine: tuple[str, ...]) -> str | None:
    """The input that stays in the forest: the spine's own, else the first that is an operator."""
    if op.name in spine:
        at = spine.index(op.name)
        return spine[at - 1] if at else None
    return next((name for name in op.inputs if name != REQUEST), None)


def _scored(table: Floats, weights: Floats) -> Floats:
    table[SCORE] = np.tensordot(weights, table, axes=1)
    return table
