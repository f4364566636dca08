"""How a profiling run goes about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The four savings, which can be switched off one by one, and when enough is known."""

    strata: bool = True
    """Inputs are looked at in an order balanced over strata, and strata predict scores."""
    reuse: bool = True
    """Operator results are shared between configs; tells prices only, whoever measures does it."""
    early_stopping: bool = True
    """Configs may stop before the end of the input set."""
    transfer: bool = True
    """Scores of other configs count (pairing and surrogate)."""
    delta: float = 0.01
    """Share of queries that may still be decided wrongly."""
    confidence: float = 0.95
    """Of the intervals reported."""
    accuracy_z: float = 0.0
    """Standard errors that planners take off an accuracy before they compare it with an SLO."""
    pilot_configs: int = 36
    """Configs to begin with, spread over all knobs."""
    pilot_inputs: int = 12
    """Inputs that they are measured on."""
    strata_count: int = 6
