"""Placement policies over templates: which of them a policy allows, by the tiers of their roles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planner.templates import Templates
from compass_shared.pipeline import Pipeline
from compass_shared.problem import Problem
from compass_shared.profile import SiteProfile
from compass_shared.query import Query, Slo
from compass_shared.site import Link, Site, Tier

_ANY_SLO = Slo(latency_p95_s=1.0, accuracy=0.0, cost_usd_per_1000=0.0)


class AllowedBy:
    """A policy as a mask over templates.

    A policy looks at pipeline, origin and usable sites alone, so it is asked once about a problem whose sites
    are the roles.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __call__(
        self, templates: Templates, tiers: tuple[Tier, ...], reach: frozenset[Tier]
    ) -> NDArray[np.bool_]:
        """(n,) whether the policy allows a template when its roles and what is in reach have these tiers."""
        if self._policy is anywhere:
            return np.ones(len(templates), dtype=np.bool_)
        problem = _problem_of_roles(templates.pipeline, tiers, reach)
        names = [operator.name for operator in templates.pipeline.operators]
        allowed = {
            tuple(_role(placement[name]) for name in names)
            for placement in self._policy(problem, problem.queries[0])
        }
        distinct, which = np.unique(templates.placement, axis=0, return_inverse=True)
        met = np.array([tuple(row) in allowed for row in distinct.tolist()], dtype=np.bool_)
        return np.asarray(met[which.reshape(-1)])


def _role(site: str) -> int:
    """The role that a site stands for, -1 for one that no template uses."""
    return int(site) if site.isdigit() else -1


def _problem_of_roles(pipeline: Pipeline, tiers: tuple[Tier, ...], reach: frozenset[Tier]) -> Problem:
    """Roles as sites that are all linked and profiled; no figure of theirs is ever looked at.

    A site of each tier in reach is added: what a policy allows may depend on what a template leaves unused.
    """
    tier_of = {str(role): tier for role, tier in enumerate(tiers)} | {tier.value: tier for tier in reach}
    roles = list(tier_of)
    query = Query(name="query", origin="0", pipeline=pipeline.name, rate_hz=1.0, slo=_ANY_SLO)
    profile = SiteProfile(
        site="", pipeline=pipeline.name, digest=pipeline.digest, operators={}, request_mean_bytes=0.0
    )
    return Problem(
        pipelines={pipeline.name: pipeline},
        sites={role: Site(name=role, tier=tier, cores=1.0) for role, tier in tier_of.items()},
        links={
            (one, two): Link(source=one, target=two, rtt_s=0.0, bandwidth_bps=1.0)
            for one in roles
            for two in roles
            if one != two
        },
        profiles={(role, pipeline.name): profile for role in roles},
        accuracy={},
        queries=(query,),
    )
