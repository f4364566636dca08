"""What a demo measured, per query and per phase: pure sums over the requests that were reported."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from compass_shared.query import Query

Json = Mapping[str, Any]


class Verdict(Enum):
    """Whether a query met its SLO, or the first objective it broke."""

    MET = "met"
    REFUSED = "refused"
    FAILED = "failed"
    """Some requests ended with an error."""
    LATENCY = "latency"
    ACCURACY = "accuracy"
    COST = "cost"
    IDLE = "idle"
    """No request arrived in the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What became of one query in one phase."""

    query: str
    sent: int
    answered: int
    refused: int
    failed: int
    """Ended with an error other than a refusal, deadlines included."""
    on_fallback: int
    latencies_s: tuple[float, ...]
    """Of the answered requests."""
    latency_p95_s: float | None
    """Over all sent requests; None if a request that counts for it never got an answer."""
    accuracy: float | None
    """Mean over the answered requests; each of a clip's requests counts with the score of the clip."""
    accuracy_se: float | None
    """Its standard error, over requests or clips."""
    clips: int | None
    """Clips that were scored; None where every request has a score of its own."""
    cost_usd_per_1000: float | None
    verdict: Verdict
    in_time: int
    """Answered within the latency SLO."""
    unaccounted_s: float
    """Mean time of a request that no operator, wait or link call explains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTotal:
    """One phase in one line."""

    phase: str
    planned_queries: int
    planned_goodput: float
    met_queries: int
    met_goodput: float
    """Weight of the queries that met all their SLOs, measured."""
    sent: int
    answered: int
    refused: int
    failed: int
    good_per_s: float
    """Requests per second that were in time, of queries whose accuracy and cost were kept."""
    cost_usd_per_hour: float


def nearest_rank(values: Sequence[float], share: float) -> float:
    """Nearest-rank quantile; infinite values count as the largest."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def request_cost_usd(request: Json, sites: Json, origin: str) -> float:
    """What one request cost: compute at every site's price, and the bytes that left each site."""
    cost: float = 0.0
    for segment in request["segments"]:
        compute_s = float(sum(timing["device_s"] for timing in segment["timings"]))
        site = sites[segment["site"]]
        cost += compute_s * float(site["compute_s_usd"])
        cost += segment["sent_bytes"] * float(sites[origin]["egress_byte_usd"])
        cost += segment["received_bytes"] * float(site["egress_byte_usd"])
    return cost


def unaccounted_s(request: Json) -> float:
    """Part of a request's latency that its segments' wall times do not cover."""
    covered = sum(float(segment["wall_s"]) for segment in request["segments"])
    return float(request["latency_s"]) - covered


def served(query: Query, requests: Sequence[Json], sites: Json, *, clips: bool = False) -> Served:
    """Sum up one query's requests of one phase.

    Args:
        query: Which one.
        requests: Its request events.
        sites: Site -> its prices.
        clips: Whether they were sent and scored clip by clip.
    """
    answered = [r for r in requests if r.get("error") is None]
    refused = [r for r in requests if r.get("error") == "RefusedError" and "latency_s" not in r]
    failed = len(requests) - len(answered) - len(refused)
    latencies = tuple(r["latency_s"] for r in answered)
    scores = [r["score"] for r in answered]
    costs = [request_cost_usd(r, sites, query.origin) for r in answered]
    p95 = nearest_rank([*latencies, *[math.inf] * failed], 0.95) if latencies else math.inf
    accuracy = sum(scores) / len(scores) if scores else None
    cost = 1000 * sum(costs) / len(costs) if costs else None
    return Served(
        query=query.name,
        sent=len(requests),
        answered=len(answered),
        refused=len(refused),
        failed=failed,
        on_fallback=sum(r["source"] != "assigned" for r in answered),
        latencies_s=latencies,
        latency_p95_s=p95 if math.isfinite(p95) else None,
        accuracy=accuracy,
        accuracy_se=_standard_error(_clip_scores(answered) if clips else scores),
        clips=len(_clip_scores(answered)) if clips else None,
        cost_usd_per_1000=cost,
        verdict=_verdict(query, requests, refused, p95, accuracy, cost),
        in_time=sum(latency <= query.slo.latency_p95_s for latency in latencies),
        unaccounted_s=sum(map(unaccounted_s, answered)) / len(answered) if answered else 0.0,
    )


def phase_total(
    phase: str, queries: Sequence[Query], rows: Mapping[str, Served], planned: Json, seconds: float
) -> PhaseTotal:
    """Sum up one phase.

    Args:
        phase: Its name.
        queries: All queries of the fleet.
        rows: Query -> what became of it.
        planned: Query -> ``{"plan": ... or None}``, as the coordinator decided.
        seconds: How long requests were sent.
    """
    chosen = [query for query in queries if planned[query.name]["plan"] is not None]
    met = [query for query in queries if rows[query.name].verdict is Verdict.MET]
    kept = [query for query in queries if _kept_quality(query, rows[query.name])]
    return PhaseTotal(
        phase=phase,
        planned_queries=len(chosen),
        planned_goodput=sum(query.weight for query in chosen),
        met_queries=len(met),
        met_goodput=sum(query.weight for query in met),
        sent=sum(row.sent for row in rows.values()),
        answered=sum(row.answered for row in rows.values()),
        refused=sum(row.refused for row in rows.values()),
        failed=sum(row.failed for row in rows.values()),
        good_per_s=sum(rows[query.name].in_time for query in kept) / seconds,
        cost_usd_per_hour=sum(
            3.6 * (row.cost_usd_per_1000 or 0.0) * row.answered / seconds for row in rows.values()
        ),
    )


def totals_by_pipeline(
    phase: str, queries: Sequence[Query], rows: Mapping[str, Served], planned: Json, seconds: float
) -> dict[str, PhaseTotal]:
    """One line for the queries of each pipeline, in their order; nothing where there is but one pipeline."""
    groups = by_pipeline(queries)
    if len(groups) < 2:
        return {}
    return {
        name: phase_total(phase, own, {query.name: rows[query.name] for query in own}, planned, seconds)
        for name, own in groups.items()
    }


def by_pipeline(queries: Sequence[Query]) -> dict[str, list[Query]]:
    """Pipeline -> its queries, both in the order in which they come."""
    groups: dict[str, list[Query]] = {}
    for query in queries:
        groups.setdefault(query.pipeline, []).append(query)
    return groups


def _verdict(
    query: Query,
    requests: Sequence[Json],
    refused: Sequence[Json],
    p95: float,
    accuracy: float | None,
    cost: float | None,
) -> Verdict:
    if not requests:
        return Verdict.IDLE
    if len(refused) == len(requests):
        return Verdict.REFUSED
    if not math.isfinite(p95) or accuracy is None or cost is None or refused:
        return Verdict.FAILED
    slo = query.slo
    if p95 > slo.latency_p95_s:
        return Verdict.LATENCY
    if accuracy < slo.accuracy:
        return Verdict.ACCURACY
    return Verdict.COST if cost > slo.cost_usd_per_1000 else Verdict.MET


def _kept_quality(query: Query, row: Served) -> bool:
    return (
        row.accuracy is not None
        and row.cost_usd_per_1000 is not None
        and row.accuracy >= query.slo.accuracy
        and row.cost_usd_per_1000 <= query.slo.cost_usd_per_1000
    )


def _clip_scores(answered: Sequence[Json]) -> list[float]:
    """One score for each stretch of requests that carry the same clip."""
    in_order = sorted(answered, key=lambda request: int(request["index"]))
    return [next(clip)["score"] for _, clip in itertools.groupby(in_order, lambda request: request["input"])]


def _standard_error(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
