"""A fleet's plan as JSON: what ``compass plan --json`` prints and the coordinator's events carry."""

from __future__ import annotations

import math

import msgspec

from compass_coordinator.planline import plan_line
from compass_coordinator.planner.search import SearchResult
from compass_coordinator.planning import FleetPlan, FleetProvision
from compass_coordinator.planning.explanation import Explanation
from compass_shared.pipeline import Pipeline
from compass_shared.plan import Plan, PlanShare
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.site import Tier


class SiteDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One site as it was planned for."""

    tier: Tier
    cores: float
    utilisation_cap: float
    compute_s_usd: float
    """One second of one busy core: rent and energy."""
    egress_byte_usd: float
    emulated: str | None
    """Device profile that an agent there emulates."""


class QueryDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One query with what was decided."""

    query: Query
    plan: Plan | None
    """None: refused, or split."""
    line: str | None
    """The plan (of a split query: every plan with its share) in one line."""
    split: tuple[PlanShare, ...]
    """Of a split query: its plans with the fractions of its requests."""
    refusal: str | None
    """Why there is none, in one sentence."""
    binding: str | None
    """What stands in the way: latency, accuracy, metric (an extra one's floor), cost, capacity, placement
    (an operator may run nowhere) or profile."""
    relaxed: dict[str, float]
    """Field of the SLO (``metrics.NAME`` for an extra metric) -> the strictest value that would do while the
    others stay; may be empty."""


class ProvisionDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The cheapest units found (``--provision``); the rest of the document is the plan on them."""

    counts: dict[str, int]
    """Site -> units to buy."""
    usd_per_hour: float
    """Units and running cost together."""
    units_usd_per_hour: float
    running_usd_per_hour: float
    """Of the plans, without the cores that units pay for."""
    bound_usd_per_hour: float
    """What units and plans would cost at least, over the candidates that were considered."""
    goodput: float
    """Share of all queries' weight that is served."""


class SearchDocument(msgspec.Struct, frozen=True, kw_only=True):
    """How the search for a query's cheapest plan ended, where there are too many plans to enumerate."""

    cost_usd_per_1000: float | None
    """Of the cheapest plan found; None if none meets the SLO."""
    bound_usd_per_1000: float | None
    """No plan costs less; None if no plan can meet the SLO at all."""
    evaluations: int
    """Configs looked at."""


class PlanDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The whole document."""

    goodput: float
    """Weight of the queries that are served."""
    bound: float
    """No set of plans could have a larger goodput."""
    cost_usd_per_s: float
    """Of all served queries at their rates."""
    stages_s: dict[str, float]
    """Stage of planning -> seconds."""
    prices: dict[str, float]
    """Resource -> weight that one more unit of it (core, byte per second) would serve; those above 0."""
    profiled: tuple[str, ...]
    links: tuple[str, ...]
    """``SOURCE>TARGET``."""
    sites: dict[str, SiteDocument]
    queries: dict[str, QueryDocument]
    explanation: Explanation | None = None
    """Of the query that ``--explain`` names."""
    provision: ProvisionDocument | None = None
    hosted: dict[str, tuple[str, ...]] = {}
    """Site -> variants that it holds, of sites that have not the memory for all."""
    searched: dict[str, SearchDocument] = {}


def describe_plan(
    problem: Problem,
    plan: FleetPlan,
    *,
    explanation: Explanation | None = None,
    provided: FleetProvision | None = None,
) -> PlanDocument:
    """Everything that was decided, and the sites and links that it was decided for."""
    emulated = {site: profile.emulated for (site, _), profile in problem.profiles.items()}
    return PlanDocument(
        goodput=plan.goodput,
        bound=plan.bound,
        cost_usd_per_s=plan.cost_usd_per_s,
        stages_s=dict(plan.seconds),
        prices={resource: price for resource, price in sorted(plan.prices.items()) if price > 0},
        profiled=tuple(sorted({site for site, _ in problem.profiles})),
        links=tuple(sorted(f"{source}>{target}" for source, target in problem.links)),
        sites={
            name: SiteDocument(
                tier=site.tier,
                cores=site.cores,
                utilisation_cap=site.utilisation_cap,
                compute_s_usd=site.compute_s_usd,
                egress_byte_usd=site.prices.egress_byte_usd,
                emulated=emulated.get(name),
            )
            for name, site in problem.sites.items()
        },
        queries={query.name: _decided(problem, plan, query) for query in problem.queries},
        explanation=explanation,
        provision=_provision(provided) if provided is not None else None,
        hosted=dict(plan.hosted),
        searched={
            query.name: describe_search(query, plan.searched[query.name])
            for query in problem.queries
            if query.name in plan.searched
        },
    )


def describe_search(query: Query, result: SearchResult) -> SearchDocument:
    """A search's scores, which are dollars per second, as dollars per 1,000 requests."""
    per_1000 = 1000 / query.rate_hz
    known = result.bound is not None and math.isfinite(result.bound)
    return SearchDocument(
        cost_usd_per_1000=per_1000 * result.score if result.serves else None,
        bound_usd_per_1000=per_1000 * result.bound if known and result.bound is not None else None,
        evaluations=result.evaluations,
    )


def _provision(provided: FleetProvision) -> ProvisionDocument:
    return ProvisionDocument(
        counts=dict(provided.counts),
        usd_per_hour=provided.usd_per_hour,
        units_usd_per_hour=provided.units_usd_per_hour,
        running_usd_per_hour=provided.running_usd_per_hour,
        bound_usd_per_hour=provided.bound_usd_per_hour,
        goodput=provided.goodput,
    )


def plan_document(problem: Problem, plan: FleetPlan) -> dict[str, object]:
    """The same as plain maps and lists."""
    document: dict[str, object] = msgspec.to_builtins(describe_plan(problem, plan))
    return document


def decision_line(pipeline: Pipeline, plan: FleetPlan, query: str) -> str | None:
    """A query's plan in one line, or all of its plans with their shares; None if it is refused."""
    if query in plan.plans:
        return plan_line(pipeline, plan.plans[query])
    shares = plan.split.get(query, ())
    return (
        " + ".join(f"{100 * share.fraction:.3g}% {plan_line(pipeline, share.plan)}" for share in shares)
        or None
    )


def _decided(problem: Problem, plan: FleetPlan, query: Query) -> QueryDocument:
    refusal = plan.refusals.get(query.name)
    pipeline = problem.pipelines.get(query.pipeline)
    return QueryDocument(
        query=query,
        plan=plan.plans.get(query.name),
        line=decision_line(pipeline, plan, query.name) if pipeline is not None else None,
        split=tuple(plan.split.get(query.name, ())),
        refusal=refusal.detail if refusal is not None else None,
        binding=refusal.binding.value if refusal is not None else None,
        relaxed=dict(refusal.relaxed) if refusal is not None else {},
    )
