"""Cross-checks between what origins report and what workers counted: nothing lost, nothing elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]
Calls = Mapping[tuple[str, str], int]
"""(query, operator) -> calls."""


AssignmentKey = tuple[str, int, int]
"""(query, coordinator, sequence)."""


def assignment_key(query: str, epoch: Json) -> AssignmentKey:
    """What names one assignment of a query."""
    return query, int(epoch["coordinator"]), int(epoch["sequence"])


def accounting_problems(
    requests: Sequence[Json],
    planned: Json,
    counters: Mapping[str, Calls],
    given: Mapping[AssignmentKey, Json | None],
) -> list[str]:
    """Everything that does not add up in one phase.

    Args:
        requests: Every request event of the phase.
        planned: Query -> decision with ``plan`` and ``query``.
        counters: Worker -> how often it ran each (query, operator) during the phase.
        given: Assignment -> its plan: a fleet that plans again while it serves gives a query several.

    Returns:
        Sentences; empty when every request ended once, answered requests ran every operator where their plan
        said, and workers counted the calls that origins made.
    """
    return [
        *_ended_once(requests),
        *_ran_as_planned(requests, given),
        *_counted(requests, counters, {name: said["query"]["origin"] for name, said in planned.items()}),
    ]


def _ended_once(requests: Sequence[Json]) -> list[str]:
    ends = Counter((request["query"], request["index"]) for request in requests)
    problems = [f"request {index} of {query} ended {n} times" for (query, index), n in ends.items() if n > 1]
    for query in sorted({request["query"] for request in requests}):
        indices = sorted(request["index"] for request in requests if request["query"] == query)
        if indices != list(range(len(indices))):
            problems.append(f"requests of {query} are missing: ended {indices}")
    return problems


def _ran_as_planned(requests: Sequence[Json], given: Mapping[AssignmentKey, Json | None]) -> list[str]:
    problems = []
    for request in requests:
        if request.get("error") is not None or request["source"] != "assigned":
            continue
        plan = given.get(assignment_key(request["query"], request["epoch"]))
        placement = {} if plan is None else plan["placement"]
        ran = [(name, segment["site"]) for segment in request["segments"] for name in segment["operators"]]
        if request["attempts"] == 1 and sorted(ran) != sorted(placement.items()):
            problems.append(
                f"request {request['index']} of {request['query']} ran {ran}, planned {placement}"
            )
    return problems


def _counted(
    requests: Sequence[Json], counters: Mapping[str, Calls], origins: Mapping[str, str]
) -> list[str]:
    """Every segment that an origin got from another worker was counted there.

    For a query whose requests were given up or tried again a worker may have counted more: an answer that
    came after its request had ended is not in any trace.
    """
    reported: Counter[tuple[str, str, str]] = Counter()
    for request in requests:
        for segment in request.get("segments", ()):
            if segment["site"] in counters and segment["site"] != origins[request["query"]]:
                reported.update((segment["site"], request["query"], name) for name in segment["operators"])
    problems = []
    given_up = {
        request["query"]
        for request in requests
        if "latency_s" in request and (request["error"] is not None or request["attempts"] > 1)
    }
    for (site, query, operator), calls in sorted(reported.items()):
        counted = counters[site].get((query, operator), 0)
        if counted < calls or (counted > calls and query not in given_up):
            problems.append(f"{site} counted {counted} calls of {operator} for {query}, its origin {calls}")
    for site, calls_at in counters.items():
        for (query, operator), calls in calls_at.items():
            if calls and not reported[site, query, operator] and query not in given_up:
                problems.append(
                    f"{site} ran {operator} for {query} {calls} times, its origin did not report it"
                )
    return problems
