"""What ``compass plan`` prints for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from compass_coordinator.plan_document import decision_line, describe_search
from compass_coordinator.planning import FleetPlan, FleetProvision
from compass_coordinator.planning.explanation import Alternative, Charge, Explanation, Said
from compass_shared.plan import Estimate, Placement
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.site import Tier, cores_resource

MANY = 40
"""More queries than this are not listed one by one."""
_LISTED, _REASONS = 3, 20
_INDENT = 21


def plan_text(problem: Problem, plan: FleetPlan) -> list[str]:
    """Every query with its plan (of many: an overview), then the totals."""
    if len(problem.queries) > MANY:
        lines = [*_overview(problem, plan), *_busiest(problem, plan)]
    else:
        lines = [line for query in problem.queries for line in _decision(problem, plan, query)]
    return [*lines, *_searched(problem, plan), *_hosted(plan), *_scarce(plan), total_line(problem, plan)]


def _overview(problem: Problem, plan: FleetPlan) -> Iterator[str]:
    """How many queries run where, and the first of those that do not."""
    places = Counter(" and ".join(_tiers(problem, each.placement)) for each in plan.plans.values())
    places.update(["split"] * len(plan.split))
    for place, count in places.most_common():
        yield f"{count:6,} {place}"
    if not plan.refusals:
        return
    bindings = Counter(refusal.binding.value for refusal in plan.refusals.values())
    reasons = _named(f"{each} ({count:,})" for each, count in bindings.most_common())
    yield f"{len(plan.refusals):6,} refused for {reasons}"
    refused = [query for query in problem.queries if query.name in plan.refusals]
    for query in refused[:_LISTED]:
        yield from _decision(problem, plan, query)
    if len(refused) > _LISTED:
        yield f"... and {len(refused) - _LISTED:,} more; --json lists all, --explain QUERY looks at one"


def _tiers(problem: Problem, placement: Placement) -> list[str]:
    used = {problem.sites[site].tier for site in placement.values()}
    return [tier.value for tier in Tier if tier in used]


def _busiest(problem: Problem, plan: FleetPlan) -> Iterator[str]:
    """The shared sites with the least room."""
    running = [*plan.plans.values(), *(share.plan for shares in plan.split.values() for share in shares)]
    used: Counter[str] = Counter()
    for each in running:
        if each.estimate is not None:
            used.update(each.estimate.demand)
    shared = [site for site in problem.sites.values() if site.tier is not Tier.DEVICE and site.cores > 0]
    shares = [(used[cores_resource(site.name)] / site.cores, site.name) for site in shared]
    busiest = sorted(shares, key=lambda found: (-found[0], found[1]))[:5]
    if busiest:
        yield f"busiest: {_named(f'{name} {100 * share:.0f}%' for share, name in busiest)}"


def total_line(problem: Problem, plan: FleetPlan) -> str:
    """Queries, goodput, cost and time in one line."""
    served = len(plan.plans) + len(plan.split)
    return (
        f"{served:,} of {len(problem.queries):,} queries served, "
        f"goodput {plan.goodput:g} of at most {plan.bound:g}, "
        f"{3600 * plan.cost_usd_per_s:.4f} USD an hour, planned in {sum(plan.seconds.values()):.2f} s"
    )


def served_in_part(plan: FleetPlan) -> dict[str, float]:
    """Query -> fraction of its requests that is served, of those that are split and not served whole."""
    totals = {name: math.fsum(share.fraction for share in shares) for name, shares in plan.split.items()}
    return {name: total for name, total in totals.items() if total < 1 - 1e-9}


def unserved_text(problem: Problem, plan: FleetPlan) -> list[str]:
    """What it costs to serve everything, or which queries stand in the way."""
    partly = served_in_part(plan)
    if not plan.refusals and partly:
        listed = ", ".join(f"{name} ({100 * part:.3g}%)" for name, part in list(partly.items())[:_REASONS])
        return [f"not everything can be served: {len(partly):,} queries are served in part: {listed}"]
    if not plan.refusals:
        return [f"everything is served for {3600 * plan.cost_usd_per_s:.4f} USD an hour"]
    refused = [query.name for query in problem.queries if query.name in plan.refusals]
    head = f"not everything can be served: {len(refused):,} of {len(problem.queries):,} queries have no plan"
    named = [f"  {name}: {plan.refusals[name].detail}" for name in refused[:_REASONS]]
    more = [f"  ... and {len(refused) - _REASONS:,} more"] if len(refused) > _REASONS else []
    return [head, *named, *more]


def provision_text(provided: FleetProvision) -> list[str]:
    """What to buy, and what it costs."""
    bought = _named(f"{count:,} of {site}" for site, count in provided.counts.items()) or "nothing"
    return [
        f"buy {bought}: serves {100 * provided.goodput:.4g}% of all weight",
        f"{provided.usd_per_hour:.2f} USD an hour: {provided.units_usd_per_hour:.2f} for units, "
        f"{provided.running_usd_per_hour:.2f} for use; of the plans considered none need less than "
        f"{provided.bound_usd_per_hour:.2f}",
    ]


def query_line(query: Query) -> str:
    """A query with its SLO."""
    slo = query.slo
    floors = "".join(f"{name} >= {least:g}, " for name, least in slo.metrics.items())
    return (
        f"{query.name}: {query.rate_hz:g}/s, p95 <= {1e3 * slo.latency_p95_s:.0f} ms, "
        f"accuracy >= {slo.accuracy:g}, {floors}"
        f"cost <= {1e3 * slo.cost_usd_per_1000:g} mUSD per 1,000"
    )


def _decision(problem: Problem, plan: FleetPlan, query: Query) -> Iterator[str]:
    yield query_line(query)
    if query.name in plan.refusals:
        yield f"  refused: {plan.refusals[query.name].detail}"
        return
    yield f"  {decision_line(problem.pipelines[query.pipeline], plan, query.name)}"
    whole = plan.plans.get(query.name)
    if whole is not None and whole.estimate is not None:
        yield f"  {_predicted(whole.estimate)}"


def _predicted(estimate: Estimate) -> str:
    metrics = "".join(f"{name} {value:.3f}, " for name, value in sorted(estimate.metrics.items()))
    return (
        f"p95 {1e3 * estimate.latency_p95_s:.0f} ms, accuracy {estimate.accuracy:.3f}, {metrics}"
        f"{1e3 * estimate.cost_usd_per_1000:.2f} mUSD per 1,000"
    )


def _searched(problem: Problem, plan: FleetPlan) -> Iterator[str]:
    """What each search found and how much cheaper a plan could be."""
    for query in problem.queries:
        if query.name not in plan.searched:
            continue
        found = describe_search(query, plan.searched[query.name])
        looked = f"{query.name}: searched {found.evaluations:,} configs"
        if found.cost_usd_per_1000 is None:
            yield f"{looked}, none serves it"
        elif found.bound_usd_per_1000 is not None:
            cost, bound = 1e3 * found.cost_usd_per_1000, 1e3 * found.bound_usd_per_1000
            yield f"{looked}; the cheapest plan costs {cost:.4g} mUSD per 1,000, none less than {bound:.4g}"


def _hosted(plan: FleetPlan) -> Iterator[str]:
    """What sites that have not the memory for everything hold."""
    for site, variants in list(plan.hosted.items())[:_REASONS]:
        yield f"{site} hosts {_named(variants)}"
    if len(plan.hosted) > _REASONS:
        yield f"... and {len(plan.hosted) - _REASONS:,} more sites host a part of what was measured there"


def _scarce(plan: FleetPlan) -> Iterator[str]:
    """Resources that have a price, the dearest first."""
    scarce = sorted(((price, name) for name, price in plan.prices.items() if price > 0), reverse=True)
    if scarce:
        named = ", ".join(f"{name} {price:.3g}" for price, name in scarce[:5])
        more = f" and {len(scarce) - 5:,} more" if len(scarce) > 5 else ""
        yield f"scarce (weight that one more unit would serve): {named}{more}"


def explanation_text(found: Explanation) -> list[str]:
    """Why a query got its plan."""
    lines = [f"{query_line(found.query)}, weight {found.query.weight:g}, from {found.query.origin}"]
    if found.refusal is not None:
        lines.append(f"{'refused':<{_INDENT}}{found.refusal}")
    shown: dict[str, str] = {}
    for alternative in (*found.chosen, *found.alternatives):
        if alternative.line in shown:
            lines.append(f"{alternative.title:<{_INDENT}}the same as {shown[alternative.line]}")
            continue
        shown[alternative.line] = alternative.title
        lines.extend(_alternative(alternative))
    part = " (the origin with one other site at a time)" if found.partial else ""
    lines.append(f"picked from {found.considered:,} plans{part}, each at the load that it would cause")
    if not found.prices:
        lines.append("no resource that it could use has a price")
    return lines


def _alternative(alternative: Alternative) -> Iterator[str]:
    yield f"{alternative.title:<{_INDENT}}{alternative.line}"
    indent = " " * _INDENT
    yield indent + ", ".join(map(_objective, alternative.slo))
    priced = [charge for charge in alternative.charges if charge.price > 0]
    if priced:
        yield f"{indent}takes {alternative.charged:.3g} of weight from others: {_named(map(_price, priced))}"
    missing = [charge for charge in alternative.charges if charge.missing > 0]
    if missing:
        yield f"{indent}no room: {_named(map(_shortage, missing))}"


def _named(texts: Iterable[str]) -> str:
    return ", ".join(texts)


def _price(charge: Charge) -> str:
    return f"{charge.demand:.3g} of {charge.resource} at {charge.price:.3g}"


def _shortage(charge: Charge) -> str:
    return f"{charge.resource} lacks {charge.missing:.3g} of the {charge.demand:.3g} it needs"


def _objective(said: Said) -> str:
    metric = said.objective.removeprefix("metrics.")
    start, scale, form, unit = _FORMS.get(said.objective, (f"{metric} ", 1.0, "{:.3f}", ""))
    if said.value is None or said.slack is None:
        if said.objective not in _FORMS:
            return f"{metric} unknown (MISSES: it was not measured)"
        return f"{start}without end (MISSES: a site is overloaded)"
    verdict = (
        f"{scale * said.slack:.3g}{unit} to spare"
        if said.met
        else f"MISSES by {-scale * said.slack:.3g}{unit}"
    )
    return f"{start}{form.format(scale * said.value)} ({verdict})"


_FORMS = {
    "latency_p95_s": ("p95 ", 1e3, "{:.0f} ms", " ms"),
    "accuracy": ("accuracy ", 1.0, "{:.3f}", ""),
    "cost_usd_per_1000": ("", 1e3, "{:.2f} mUSD per 1,000", ""),
}
"""Objective -> words before the value, its factor, its form, the slack's unit."""
