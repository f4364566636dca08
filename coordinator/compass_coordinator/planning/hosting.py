"""Which variants the sites host: memory counts once for a variant at a site, however many queries use it.

An *item* is a variant at a site. A plan can be chosen only if every item that it uses is hosted, and what a
site hosts has to fit its memory. Loading an item that is not there yet costs some value.

    maximise    sum_qp value_qp x_qp - sum over new items of loading_i        then minimise the cost
    subject to  the match's constraints, x_qp <= hosted_i for every item i that plan p of query q uses,
                sum over items i at site s of memory_i hosted_i <= memory_s

The matcher knows nothing of memory: this outer step decides what is hosted and shows it the plans over that.

1. Match without memory limits. Where a site then hosts too much, drop the item with the least loss per byte:
   what queries lose that have to take their next best plan, at the prices of that match. Match again.
2. Do the same with only what is there already, in case that loading costs more than it brings.
3. Improve both, the better one first. Sets that plans lack are ranked by what queries would gain from them at
   the current prices; what has the least loss per byte makes room. New items that bring less than their
   loading are ranked with them. A match judges first all that do not touch the same sites together, then each
   alone; the first that gains is taken, until none does.

What is there already and fits beside the rest stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compass_coordinator.matcher import MatchResult, match
from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.problem import Floats, checked
from compass_coordinator.planning.hosting_case import Hosted, HostingCase, Items
from compass_shared.errors import PlanningError

_MAX_MATCHES = 48
_MAX_TRIES = 12
"""Changes that are tried before the search gives up."""
_TIE = 1e-9
"""Relative difference of values that is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hosting:
    """What to host, and the plans over it."""

    hosted: Hosted
    """(items,) bool."""
    match: MatchResult
    """Its bound and prices are those of the plans over what is hosted."""
    loading: float
    """Value that loading costs."""
    bound: float
    """No hosting has more value after loading: the bound of the match without memory limits."""


def host(
    values: ArrayLike,
    demands: ArrayLike,
    capacities: ArrayLike,
    uses: ArrayLike,
    items: Items,
    costs: ArrayLike | None = None,
    *,
    time_limit_s: float | None = None,
    seed: int = 0,
) -> Hosting:
    """Choose what to host, and plans over it.

    Args:
        values: (queries, plans) float64, -inf where a query has no such plan; only what is > 0 is chosen.
        demands: (queries, plans, resources) float64, >= 0.
        capacities: (resources,) float64, >= 0.
        uses: (queries, plans, width) integers, the items that a plan uses; -1 fills up.
        items: What can be hosted.
        costs: (queries, plans) float64.
        time_limit_s: No further improvement is begun after that; None to stop by the number of matches.
        seed: For the matches.

    Raises:
        PlanningError: If the input is malformed.
    """
    deadline = Deadline.after(time_limit_s)
    problem = checked(values, demands, capacities, costs)
    case = HostingCase(
        values=problem.values,
        demands=problem.demands,
        capacities=problem.capacities,
        costs=problem.costs,
        uses=_distinct(uses, items, problem.values.shape),
        items=items,
    )
    return _Search(case, seed=seed, deadline=deadline).run()


def _distinct(uses: ArrayLike, items: Items, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Check which items plans use; none is named twice in the result."""
    used = np.asarray(uses)
    count, sites = len(items.site), len(items.site_memory_bytes)
    if used.ndim != 3 or used.shape[:2] != shape or not np.issubdtype(used.dtype, np.integer):
        raise PlanningError(
            f"uses must be integers of shape {(*shape, 'width')}; got {used.dtype} {used.shape}"
        )
    if used.size and not (used.min() >= -1 and used.max() < count):
        raise PlanningError(f"uses must be -1 or indices of the {count} items")
    if not (len(items.memory_bytes) == len(items.hosted) == len(items.loading) == count):
        raise PlanningError("the arrays of items differ in length")
    if count and not (items.site.min() >= 0 and items.site.max() < sites):
        raise PlanningError(f"sites of items must be indices of the {sites} sites")
    amounts = np.concatenate([items.memory_bytes, items.loading])
    if not (np.isfinite(amounts) & (amounts >= 0)).all() or not (items.site_memory_bytes >= 0).all():
        raise PlanningError("memory and loading of items must be finite and >= 0, memory of sites >= 0")
    distinct = np.sort(used.astype(np.int64), axis=2)
    distinct[:, :, 1:][distinct[:, :, 1:] == distinct[:, :, :-1]] = -1
    return distinct


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Outcome:
    hosted: Hosted
    match: MatchResult
    loading: float

    @property
    def net(self) -> float:
        return self.match.value - self.loading

    def beats(self, other: _Outcome) -> bool:
        """Whether it has more value after loading, or as much at less cost."""
        tie = _TIE * max(abs(self.net), abs(other.net))
        if abs(self.net - other.net) > tie:
            return self.net > other.net
        return self.match.cost < other.match.cost - _TIE * abs(other.match.cost)


class _Search:
    def __init__(self, case: HostingCase, *, seed: int, deadline: Deadline) -> None:
        self._case = case
        self._seed = seed
        self._deadline = deadline
        self._matches = 0
        self._warm: Floats | None = None
        self._tried: set[bytes] = set()

    def run(self) -> Hosting:
        case = self._case
        free = self._judged(np.ones_like(case.items.hosted, dtype=bool))
        reduced = case.reduced(free.match.prices)
        starts = [
            self._judged(case.fitted(free.hosted, reduced)),
            self._judged(case.fitted(case.items.hosted.astype(bool), reduced)),
        ]
        if starts[1].beats(starts[0]):
            starts.reverse()
        best = self._improved(starts[0])
        other = self._improved(starts[1])
        if other.beats(best):
            best = other
        return Hosting(hosted=best.hosted, match=best.match, loading=best.loading, bound=free.match.bound)

    def _improved(self, best: _Outcome) -> _Outcome:
        better: _Outcome | None = best
        while better is not None:
            best = better
            better = self._better(best)
        return best

    def _judged(self, hosted: Hosted) -> _Outcome:
        """Match over what is hosted; what is new and remains unused is not loaded."""
        case = self._case
        self._matches += 1
        self._tried.add(hosted.tobytes())
        result = match(
            case.offered(hosted),
            case.demands,
            case.capacities,
            case.costs,
            warm_prices=self._warm,
            time_limit_s=self._deadline.left_s(),
            seed=self._seed,
        )
        self._warm = np.asarray(result.prices)
        used = case.used_by(result.choice)
        new = used & ~case.items.hosted
        return _Outcome(
            hosted=used | (hosted & case.items.hosted),
            match=result,
            loading=float(case.items.loading[new].sum()),
        )

    def _better(self, best: _Outcome) -> _Outcome | None:
        """The first promising change that gains."""
        reduced = self._case.reduced(best.match.prices)
        tries = 0
        for hosted in self._case.changes(best.hosted, reduced):
            if self._matches >= _MAX_MATCHES or tries >= _MAX_TRIES or self._deadline.passed():
                return None
            if hosted.tobytes() in self._tried:
                continue
            tries += 1
            outcome = self._judged(hosted)
            if outcome.beats(best):
                return outcome
        return None
