"""Planning a fleet: candidates, match and settlement, composed."""

from compass_coordinator.planning.fleet_plan import plan_fleet
from compass_coordinator.planning.provision_fleet import FleetProvision, provision_fleet
from compass_coordinator.planning.result import FleetPlan

__all__ = ["FleetPlan", "FleetProvision", "plan_fleet", "provision_fleet"]
