"""Searching configuration spaces that are too large to enumerate."""

from compass_coordinator.planner.search.measuring import MeasureAccuracy
from compass_coordinator.planner.search.result import Budget, SearchResult
from compass_coordinator.planner.search.search import improving_plans, search_plan

__all__ = ["Budget", "MeasureAccuracy", "SearchResult", "improving_plans", "search_plan"]
