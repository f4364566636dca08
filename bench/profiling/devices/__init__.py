"""Latency transfer over real differences between devices: measured, replayed, judged."""

from profiling.devices.judged import judge, print_rows
from profiling.devices.measured import RESULT, Measured, measure, read_measured

__all__ = ["RESULT", "Measured", "judge", "measure", "print_rows", "read_measured"]
