"""Planning a fleet: candidates, match and settlement, composed."""

from compass_coordinator.planning.fleet_plan import FleetPlan, plan_fleet

__all__ = ["FleetPlan", "plan_fleet"]
