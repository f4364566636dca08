"""Estimates and intervals from some of the inputs: strata, and bounds that hold at every look."""
