"""Planners: the plans that could serve one query."""

from compass_coordinator.planner.brute_force import Candidates, find_candidates
from compass_coordinator.planner.fallback import best_local_plan
from compass_coordinator.planner.policy import POLICIES, Policy, anywhere, cloud_only, device_only
from compass_coordinator.planner.refusal import Binding, Refusal

__all__ = [
    "POLICIES",
    "Binding",
    "Candidates",
    "Policy",
    "Refusal",
    "anywhere",
    "best_local_plan",
    "cloud_only",
    "device_only",
    "find_candidates",
]
