"""Latency that was not measured: transfer from few probes, serving that feeds back, what to probe next."""
