"""Planning a fleet: candidates, match and settlement, composed."""

from compass_coordinator.planning.fleet_plan import plan_fleet
from compass_coordinator.planning.result import FleetPlan

__all__ = ["FleetPlan", "plan_fleet"]
