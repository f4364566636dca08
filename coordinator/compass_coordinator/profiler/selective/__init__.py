"""Selective profiling of accuracy: what to measure next, and what follows for the rest."""

from compass_coordinator.profiler.selective.decisions import Decide, Decisions
from compass_coordinator.profiler.selective.operator_times import OperatorTimes
from compass_coordinator.profiler.selective.options import Options
from compass_coordinator.profiler.selective.others import KnownOther
from compass_coordinator.profiler.selective.profiler import Known, Profiler, Status
from compass_coordinator.profiler.selective.space import Space, space_of
from compass_coordinator.profiler.selective.targets import Target, of_any, of_fleet, of_targets

__all__ = [
    "Decide",
    "Decisions",
    "Known",
    "KnownOther",
    "OperatorTimes",
    "Options",
    "Profiler",
    "Space",
    "Status",
    "Target",
    "of_any",
    "of_fleet",
    "of_targets",
    "space_of",
]
