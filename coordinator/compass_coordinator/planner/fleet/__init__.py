"""Planning all queries of a large fleet at once: templates at instances, searched at prices."""

from compass_coordinator.planner.fleet.candidates import (
    FleetCandidates,
    add_columns,
    candidates_of,
    find_fleet_candidates,
)
from compass_coordinator.planner.fleet.space import FleetSpace, TemplateCache

__all__ = [
    "FleetCandidates",
    "FleetSpace",
    "TemplateCache",
    "add_columns",
    "candidates_of",
    "find_fleet_candidates",
]
