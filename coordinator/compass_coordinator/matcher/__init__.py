"""Matchers: which plan for which query, so that all fit together."""

from compass_coordinator.matcher.lagrangian import match
from compass_coordinator.matcher.milp import match_milp
from compass_coordinator.matcher.online import Admission, Matcher, Refusal, Round
from compass_coordinator.matcher.problem import SparseDemands
from compass_coordinator.matcher.result import (
    BOUND_PRECISION,
    REFUSED,
    MatchResult,
    MatchStatus,
    Shares,
)

__all__ = [
    "BOUND_PRECISION",
    "REFUSED",
    "Admission",
    "MatchResult",
    "MatchStatus",
    "Matcher",
    "Refusal",
    "Round",
    "Shares",
    "SparseDemands",
    "match",
    "match_milp",
]
