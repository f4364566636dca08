"""What planning a fleet results in, and what every way of planning one needs."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from compass_coordinator.planner.fallback import best_local_plan
from compass_coordinator.planner.refusal import Refusal
from compass_coordinator.planner.search import SearchResult
from compass_shared.errors import InfeasibleError, PlanningError, ProfileError
from compass_shared.evaluate import unknown_metric
from compass_shared.plan import Plan, PlanShare
from compass_shared.problem import Problem
from compass_shared.query import Query


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """What a fleet is to run."""

    plans: Mapping[str, Plan]
    """Query name -> plan, with its estimate at the load that results from all of them."""
    refusals: Mapping[str, Refusal]
    """Why each of the other queries has none."""
    fallbacks: Mapping[str, Plan]
    """Query name -> what it can do at its origin alone; not for queries that were not measured there, or of
    whose operators one must not run there."""
    goodput: float
    """Weight of the queries that are served; each meets its whole SLO."""
    cost_usd_per_s: float
    """Of all served queries at their rates."""
    bound: float
    """No set of plans could have a larger goodput, even if nobody ever waited; in large fleets, of plans that
    use at most two remote sites."""
    seconds: Mapping[str, float]
    """Stage -> time spent in it."""
    split: Mapping[str, tuple[PlanShare, ...]] = field(default_factory=dict)
    """Query name -> its plans with fractions, for the divisible queries that were given several or a part."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """Resource -> weight that one more unit of it would serve (0 where there is enough)."""
    hosted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Site -> variants that it holds, as ``pipeline/variant``; only of sites that cannot hold all."""

    searched: Mapping[str, SearchResult] = field(default_factory=dict)
    """Query -> how the search for its cheapest plan ended; of queries with too many plans to enumerate."""

    @property
    def gap(self) -> float:
        """``(bound - goodput) / bound``: no more than this share of the best goodput is missed."""
        return (self.bound - self.goodput) / self.bound if self.bound > 0 else 0.0


@dataclass(slots=True)
class Stopwatch:
    """Time spent in the stages of planning."""

    timer: Callable[[], float]
    seconds: dict[str, float] = field(default_factory=dict)
    _last_s: float = 0.0

    def __post_init__(self) -> None:
        self._last_s = self.timer()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to a stage."""
        now_s = self.timer()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now_s - self._last_s
        self._last_s = now_s


def require_distinct_names(problem: Problem) -> None:
    """Refuse a problem in which a name stands for two queries.

    Raises:
        PlanningError: Naming them.
    """
    counted = Counter(query.name for query in problem.queries)
    if twice := sorted(name for name, count in counted.items() if count > 1):
        raise PlanningError(f"query names must differ; given more than once: {', '.join(twice)}")


def unknown_to(problem: Problem, query: Query) -> str | None:
    """What a query refers to and the problem does not know: one such query must not stop the others."""
    if query.pipeline not in problem.pipelines:
        return f"pipeline {query.pipeline!r} is not known"
    if query.origin not in problem.sites:
        return f"its origin {query.origin!r} is not a known site"
    return unknown_metric(problem, query)


class Fallbacks(Mapping[str, Plan]):
    """What each query can do at its origin alone, found when it is asked for."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._queries = {query.name: query for query in problem.queries}
        self._found: dict[str, Plan | None] = {}

    def __getitem__(self, name: str) -> Plan:
        if name not in self._found:
            self._found[name] = self._find(self._queries[name])
        found = self._found[name]
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._queries if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _find(self, query: Query) -> Plan | None:
        # Without measurements at the origin there is nothing to choose by, and what must not run there does
        # not run there in need either; such a query has no fallback.
        if unknown_to(self._problem, query) is None:
            with contextlib.suppress(ProfileError, InfeasibleError):
                return best_local_plan(self._problem, query)
        return None
