"""From a fleet's plan to what is published: an assignment for the agent, shares for the workers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from compass_coordinator.planning import FleetPlan
from compass_shared.messages import ShareMessage, WorkerInfo
from compass_shared.pipeline import variant_key
from compass_shared.plan import Assignment, Epoch, Plan, PlanShare, WorkerAccess
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.site import cores_resource

NOT_YET = Epoch(coordinator=0, sequence=0)

MIN_DEADLINE_S = 1.0
DEADLINE_SLOS = 3.0
"""A request is given up after this many times its latency SLO, or when its fallback cannot make it either."""

SHARE_TOLERANCE = 0.2
"""Relative change of a share's cores that is not worth publishing: estimates move with every measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """All that is published for one query."""

    agent: str
    assignment: Assignment
    shares: Mapping[str, ShareMessage] = field(default_factory=dict)
    """Worker -> its share."""

    def same_as(self, other: Decision) -> bool:
        """Whether publishing ``other`` would change nothing that runs."""
        return self._essence() == other._essence() and all(
            math.isclose(share.cores, other.shares[site].cores, rel_tol=SHARE_TOLERANCE)
            for site, share in self.shares.items()
        )

    def reaches(self, workers: Mapping[str, WorkerInfo]) -> bool:
        """Whether the agent was told where each worker is, as far as these are known."""
        told = self.assignment.workers
        return all(
            site in told and (site not in workers or told[site].address == workers[site].address)
            for site in self.shares
        )

    def stamped(self, epoch: Epoch, *, token: str, workers: Mapping[str, WorkerInfo]) -> Decision:
        """The same decision, ready to be sent."""
        access = {
            site: WorkerAccess(address=workers[site].address, token=token)
            for site in self.shares
            if site in workers
        }
        return replace(
            self,
            assignment=replace(self.assignment, epoch=epoch, workers=access),
            shares={site: replace(share, epoch=epoch, token=token) for site, share in self.shares.items()},
        )

    def _essence(self) -> object:
        running = [
            (share.plan.config, share.plan.placement, share.plan.allocation, share.fraction)
            for share in _whole_or_split(self.assignment)
        ]
        rates = {site: (share.rate_hz, share.variants) for site, share in self.shares.items()}
        return self.agent, running, rates, self.assignment.digest, self.assignment.refusal


def decisions_of(problem: Problem, fleet_plan: FleetPlan) -> dict[str, Decision]:
    """A decision for every query of the problem, served or refused.

    Args:
        problem: What was planned for.
        fleet_plan: The result.

    Returns:
        Query name -> decision, not yet stamped with epoch, token and addresses.
    """
    return {query.name: _decision(problem, fleet_plan, query) for query in problem.queries}


def _decision(problem: Problem, fleet_plan: FleetPlan, query: Query) -> Decision:
    split = fleet_plan.split.get(query.name, ())
    plan = max(split, key=lambda share: share.fraction).plan if split else fleet_plan.plans.get(query.name)
    # A refused query runs nothing: its best effort would take from the queries that were admitted.
    fallback = None if plan is None else fleet_plan.fallbacks.get(query.name)
    refusal = None if plan is not None else fleet_plan.refusals[query.name].detail
    assignment = Assignment(
        query=query.name,
        pipeline=query.pipeline,
        digest=problem.pipelines[query.pipeline].digest,
        epoch=NOT_YET,
        plan=plan,
        fallback=fallback,
        deadline_s=_deadline_s(query, fallback),
        refusal=refusal,
        split=split,
    )
    shares = _shares(problem, query, _whole_or_split(assignment))
    return Decision(agent=query.origin, assignment=assignment, shares=shares)


def _whole_or_split(assignment: Assignment) -> tuple[PlanShare, ...]:
    if assignment.split or assignment.plan is None:
        return assignment.split
    return (PlanShare(plan=assignment.plan, fraction=1.0),)


def _deadline_s(query: Query, fallback: Plan | None) -> float:
    local_s = fallback.estimate.latency_p95_s if fallback is not None and fallback.estimate else 0.0
    if not math.isfinite(local_s):
        local_s = 0.0  # a device that cannot keep up has no p95, and a request must end all the same
    slo_s = query.slo.latency_p95_s
    return max(MIN_DEADLINE_S, DEADLINE_SLOS * slo_s, slo_s + 2 * local_s)


def _shares(problem: Problem, query: Query, running: Sequence[PlanShare]) -> dict[str, ShareMessage]:
    """What each worker has to serve for a query, all of its plans together."""
    pipeline = problem.pipelines[query.pipeline]
    visited = {site for share in running for site in share.plan.placement.values()} - {query.origin}
    shares = {}
    for site in sorted(visited):
        here = [share for share in running if site in share.plan.placement.values()]
        variants = {
            variant_key(op.name, share.plan.config.get(op.name, {})): None
            for share in here
            for op in pipeline.operators
            if share.plan.placement[op.name] == site
        }
        demands = [share.plan.estimate.demand for share in here if share.plan.estimate is not None]
        shares[site] = ShareMessage(
            query=query.name,
            origin=query.origin,
            pipeline=query.pipeline,
            digest=pipeline.digest,
            epoch=NOT_YET,
            variants=tuple(variants),
            rate_hz=query.rate_hz * math.fsum(share.fraction for share in here),
            cores=math.fsum(demand.get(cores_resource(site), 0.0) for demand in demands),
            token="",
        )
    return shares
