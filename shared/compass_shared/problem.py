"""The planning problem: everything a planner, a matcher and ``check_plan`` need to know.

How a plan is evaluated (the coordinator's estimator and ``check_plan`` implement it independently):

* The placement is cut into segments (``compass_shared.segments``). The agent at the origin drives them:
  a remote segment is one HTTP call that carries all values it ``needs`` and returns all it ``exports``,
  so everything between two remote sites passes through the origin. If ``request`` is needed it is sent.
* Compute of a segment is the sum over its operators of the measured means at that site; variances add.
* A remote segment adds ``rtt_s`` of the link origin -> site (variance ``rtt_var_s2``), the bytes up over
  the link origin -> site and the bytes down over the link site -> origin. Variance of a transfer is
  ``var_bytes2 / bandwidth^2 + (mean_bytes / bandwidth * bandwidth_rel_sd)^2``.
* Every segment waits for a core of its site: mean ``rho^(sqrt(2(k+1))-1) / (k (1-rho)) * residual_s``
  (Sakasegawa's approximation of M/G/k with ``residual_s = E[S^2] / (2 E[S])`` over the segments that visit
  the site); variance ``wait^2 (2 / rho - 1)``, 0 at rho = 0. ``k = max(1, floor(cores))``.
* Latency of the plan: over every source-to-sink path of the segment graph, means and variances add; the
  path's p95 is ``mean + 1.6449 * sqrt(variance)``; the plan's p95 is the largest of its paths' p95s
  (an approximation, measured in the demo bench). The mean and variance reported are those of that path.
* Cost per request: over all segments, compute seconds x the site's ``compute_s_usd``; plus bytes up x the
  origin's egress price, plus bytes down x the remote site's egress price.
* Demand at rate: ``cores@site`` = rate x compute seconds; ``link@a>b`` = rate x bytes (in bytes/s).
* Accuracy and extra metrics: the table's means for the config, wherever it runs.
* Operators with state work through the requests of a query one after the other: ``rate x mean seconds`` of
  each at its site must not exceed the site's utilisation cap. (How long a request then waits for the one
  before it is not modelled.) A query of such a pipeline is served whole by one plan, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from compass_shared.errors import PlanningError
from compass_shared.pipeline import Operator, Pipeline
from compass_shared.profile import AccuracyTable, SiteProfile, meeting
from compass_shared.query import Query
from compass_shared.site import Link, Site, cores_resource, link_resource

Z95 = 1.6448536269514722
"""Standard normal quantile of 0.95."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLoad:
    """Load that a visit to a site meets."""

    utilisation: float
    """Busy share of the site's cores, in [0, 1)."""
    residual_s: float
    """Mean remaining time of a segment in service, ``E[S^2] / (2 E[S])``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Sites, links, profiles and queries at one moment."""

    pipelines: Mapping[str, Pipeline]
    sites: Mapping[str, Site]
    links: Mapping[tuple[str, str], Link]
    """(source, target) -> link; a remote site can be used only if both directions are known."""
    profiles: Mapping[tuple[str, str], SiteProfile]
    """(site, pipeline) -> measured operators."""
    accuracy: Mapping[str, AccuracyTable]
    """Pipeline -> accuracy of its configs; configs that are not in it cannot be chosen."""
    queries: tuple[Query, ...]
    loads: Mapping[str, SiteLoad] = field(default_factory=dict)
    """Load at which a planner evaluates waiting; sites that are not listed have none."""
    reachable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Query -> the only sites it may use besides its origin; unlisted queries may use every site."""

    def capacities(self) -> dict[str, float]:
        """Resource name -> what the matcher may hand out: cap x physical."""
        cores = {cores_resource(s.name): s.cores * s.utilisation_cap for s in self.sites.values()}
        links = {
            link_resource(link.source, link.target): link.bandwidth_bps * link.utilisation_cap
            for link in self.links.values()
        }
        return cores | links

    def sites_for(self, query: Query) -> tuple[str, ...]:
        """The origin first, then every other site the query can use, by name.

        A site can be used if it is reachable in both directions and was profiled for the pipeline.
        """
        if query.origin not in self.sites:
            raise PlanningError(f"query {query.name!r}: its origin {query.origin!r} is not a known site")
        allowed = self.reachable.get(query.name, tuple(self.sites))
        others = [
            name
            for name in sorted(allowed)
            if name != query.origin
            and name in self.sites
            and (query.origin, name) in self.links
            and (name, query.origin) in self.links
            and (name, query.pipeline) in self.profiles
        ]
        return (query.origin, *others)

    def sites_of(self, query: Query, operator: Operator) -> tuple[str, ...]:
        """Those of ``sites_for`` at which this operator may run: its placement constraint holds there."""
        return tuple(site for site in self.sites_for(query) if self.may_run(query, operator, site))

    def may_run(self, query: Query, operator: Operator, site: str) -> bool:
        """Whether an operator's placement constraint lets it run at a site; speed and memory aside."""
        places = operator.must_run_on
        if not places or ("origin" in places and site == query.origin):
            return True
        return self.sites[site].tier.value in places

    def keeps_up(self, query: Query, mean_s: float, site: str) -> bool:
        """Whether an operator with state that takes so long on average works through a query's requests."""
        return query.rate_hz * mean_s <= self.sites[site].utilisation_cap

    def accuracy_for(self, query: Query) -> AccuracyTable | None:
        """Accuracy of the configs that a query may be given: those that reach its extra metrics' floors."""
        table = self.accuracy.get(query.pipeline)
        return None if table is None else meeting(table, query.slo.metrics)
