"""Measuring for the profiler, in processes of the agent's package: the pool, its children and the log."""

from compass_coordinator.measuring.log import MeasurementLog, header_of, only_run, read_log
from compass_coordinator.measuring.pool import MeasuringPool

__all__ = ["MeasurementLog", "MeasuringPool", "header_of", "only_run", "read_log"]
