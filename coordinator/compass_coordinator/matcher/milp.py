"""The exact matcher: a mixed-integer linear program, solved by HiGHS.

Sets: queries Q, plans P_q of each, resources R. Variables: x_qp in {0, 1}, whether q runs by plan p.

    first   maximise v* = sum_qp value_qp x_qp
    then    minimise sum_qp cost_qp x_qp  with  sum_qp value_qp x_qp >= v*

    with    sum_p x_qp <= 1                             for every q
            sum_qp demand_qpr x_qp <= capacity_r        for every r

Rows are divided by their right-hand side and objectives by their largest coefficient, because the solver's
tolerances are absolute (1e-6). Values that differ by less than that share of the largest one count as equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, sparse

from compass_coordinator.matcher.problem import Floats, MatchProblem, checked
from compass_coordinator.matcher.result import REFUSED, MatchResult, MatchStatus, Shares
from compass_shared.errors import PlanningError

_VALUE_SLACK = 1e-6
"""Of the largest value: how far the second stage may fall below the first and still count as equal."""
_OVERDRAFT = 1e-9
"""Relative excess over a capacity that is rounding."""
_MARGIN = 1e-5
"""Relative; more than the solver's tolerance."""
_MAX_CUTS = 100
_OPTIMAL, _LIMIT, _INFEASIBLE = 0, 1, 2


def match_milp(
    values: ArrayLike,
    demands: ArrayLike,
    capacities: ArrayLike,
    costs: ArrayLike | None = None,
    *,
    time_limit_s: float | None = None,
) -> MatchResult:
    """Choose at most one plan a query: the largest total value, then the least total cost.

    Args:
        values: (queries, plans) float64, -inf where a query has no such plan; only what is > 0 is chosen.
        demands: (queries, plans, resources) float64, >= 0.
        capacities: (resources,) float64, >= 0, in the units of the demands.
        costs: (queries, plans) float64; None to stop after the first stage.
        time_limit_s: Limit of each solver run; None for as long as it takes.

    Returns:
        The choice. With a time limit it may not be optimal: see its status and gap. The bound is the
        solver's and comes from no prices: they are zeros.

    Raises:
        PlanningError: If the input is malformed or the solver fails.
    """
    problem = checked(values, demands, capacities, costs)
    program = _Program.of(problem)
    if not program.query.size:
        return _result(problem, program, program.query[:0], bound=0.0, optimal=True)
    first = program.solve(-program.value, time_limit_s)
    bound = max(first.bound_of(-program.value), 0.0)
    chosen, optimal = first.chosen, first.optimal
    if costs is not None and optimal:
        scale = np.abs(program.value).max()
        floor = math.fsum(program.value[chosen]) / scale - _VALUE_SLACK
        second = program.with_floor(program.value / scale, floor).solve(program.cost, time_limit_s)
        if math.fsum(program.value[second.chosen]) / scale >= floor - _VALUE_SLACK:
            chosen, optimal = second.chosen, second.optimal
    return _result(problem, program, chosen, bound=bound, optimal=optimal)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Solved:
    chosen: NDArray[np.int64]
    """Columns whose variable is 1."""
    optimal: bool
    dual_bound: float | None
    """Lower bound of the minimised objective, if the solver gave one."""

    def bound_of(self, minimised: Floats) -> float:
        """Upper bound of the maximised objective."""
        if self.optimal:
            return -math.fsum(minimised[self.chosen])
        return math.inf if self.dual_bound is None else -self.dual_bound


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Program:
    """The program in the solver's terms; column = one plan of one query."""

    query: NDArray[np.int64]
    plan: NDArray[np.int64]
    value: Floats
    cost: Floats
    demand: Floats
    """(columns, resources) as a share of the capacity."""
    rows: tuple[sparse.csr_array, ...] = ()
    """Further rows, each with the upper bound at the same place of ``uppers``."""
    uppers: tuple[float, ...] = ()

    @classmethod
    def of(cls, problem: MatchProblem) -> _Program:
        """Columns for the plans that exist, are worth something and fit on their own."""
        capacities = problem.capacities
        share = np.divide(
            problem.demands,
            capacities,
            out=np.where(problem.demands > 0, np.inf, 0.0),
            where=capacities > 0,
        )
        with np.errstate(invalid="ignore"):
            usable = (problem.values > 0) & (share <= 1 + _OVERDRAFT).all(axis=2)
        query, plan = np.nonzero(usable)
        return cls(
            query=query,
            plan=plan,
            value=problem.values[query, plan],
            cost=problem.costs[query, plan],
            demand=share[query, plan],
        )

    def with_floor(self, coefficients: Floats, floor: float) -> _Program:
        """The same with ``coefficients @ x >= floor``."""
        return self._with_row(-coefficients, -floor)

    def solve(self, minimised: Floats, time_limit_s: float | None) -> _Solved:
        """Minimise a linear objective; the choice fits the capacities beyond the solver's tolerance.

        The solver may overdraw a row by its tolerance. Where that decides, the plans that overdraw together
        are forbidden together and it solves again; should there be too many such sets, every demand is
        raised by more than the tolerance instead, at the price of optimality.
        """
        program = self
        for _ in range(_MAX_CUTS):
            solved = program._solve_once(minimised, time_limit_s)
            overdrawn = self._overdrawn(solved.chosen)
            if not overdrawn.size:
                return solved
            users = solved.chosen[self.demand[solved.chosen, overdrawn[0]] > 0]
            together = np.zeros(len(self.query))
            together[users] = 1.0
            program = program._with_row(together, len(users) - 1.0)
        bound = -solved.bound_of(minimised)
        careful = replace(self, demand=self.demand * (1 + _MARGIN))._solve_once(minimised, time_limit_s)
        return replace(careful, optimal=False, dual_bound=bound)

    def _overdrawn(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.flatnonzero(self.demand[chosen].sum(axis=0) > 1 + _OVERDRAFT)

    def _with_row(self, coefficients: Floats, upper: float) -> _Program:
        row = sparse.csr_array(coefficients[np.newaxis])
        return replace(self, rows=(*self.rows, row), uppers=(*self.uppers, upper))

    def _solve_once(self, minimised: Floats, time_limit_s: float | None) -> _Solved:
        columns = len(self.query)
        scale = float(np.abs(minimised).max()) or 1.0
        limit_s = math.inf if time_limit_s is None else time_limit_s
        one_each = sparse.csr_array(
            (np.ones(columns), (self.query, np.arange(columns))), shape=(self.query.max() + 1, columns)
        )
        matrix = sparse.vstack([one_each, sparse.csr_array(self.demand.T), *self.rows], format="csr")
        uppers = np.concatenate([np.ones(one_each.shape[0] + self.demand.shape[1]), self.uppers])
        for presolve in (True, False):
            answer = optimize.milp(
                minimised / scale,
                integrality=np.ones(columns, dtype=np.int64),
                bounds=optimize.Bounds(0, 1),
                constraints=optimize.LinearConstraint(matrix, -np.inf, uppers),
                options={"mip_rel_gap": 0.0, "presolve": presolve, "time_limit": limit_s},
            )
            # HiGHS 1.12's presolve calls some programs infeasible where a row can be filled up to rounding.
            if answer.status != _INFEASIBLE:
                break
        if answer.status not in {_OPTIMAL, _LIMIT}:
            raise PlanningError(f"the matcher's solver failed: {answer.message}")
        bound = answer.mip_dual_bound
        return _Solved(
            # Choosing nothing is always feasible, if nothing better was found in time.
            chosen=np.flatnonzero(answer.x > 0.5) if answer.x is not None else np.arange(0),
            optimal=answer.status == _OPTIMAL,
            dual_bound=None if bound is None or not math.isfinite(bound) else float(bound) * scale,
        )


def _result(
    problem: MatchProblem, program: _Program, chosen: NDArray[np.int64], *, bound: float, optimal: bool
) -> MatchResult:
    choice = np.full(len(problem.values), REFUSED, dtype=np.int64)
    choice[program.query[chosen]] = program.plan[chosen]
    value = math.fsum(program.value[chosen])
    # Without any bound from the solver, every query getting its best plan is one.
    most = math.fsum(np.maximum(problem.values.max(axis=1, initial=0.0), 0.0))
    bound = max(min(bound, most), value)
    return MatchResult(
        choice=choice,
        shares=Shares.none(),
        value=value,
        cost=math.fsum(program.cost[chosen]),
        prices=np.zeros_like(problem.capacities),
        bound=bound,
        gap=(bound - value) / bound if bound > 0 else 0.0,
        status=MatchStatus.OPTIMAL if optimal else MatchStatus.FEASIBLE,
    )
