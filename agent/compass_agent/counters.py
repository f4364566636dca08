"""What a worker did, as numbers: per query and operator, nothing of what passed through it."""

from __future__ import annotations

from dataclasses import dataclass, field

from compass_agent.execution import SegmentResult


@dataclass(slots=True)
class OperatorCounter:
    """How often one operator ran for one query, and for how long."""

    calls: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0


@dataclass(slots=True)
class QueryCounter:
    """What was done for one query."""

    answered: int = 0
    failed: int = 0
    refused: int = 0
    repeated: int = 0
    """Calls that had arrived before."""
    busy_s: float = 0.0
    operators: dict[str, OperatorCounter] = field(default_factory=dict)


@dataclass(slots=True)
class WorkerCounters:
    """What a worker did since it started; nothing of what passed through it."""

    queries: dict[str, QueryCounter] = field(default_factory=dict)
    strangers: int = 0
    """Calls without the token of a share that is held here; their bodies were not read."""
    garbage: int = 0
    """Bodies that were not calls."""
    overruns: int = 0
    overrun_s: float = 0.0

    def add(self, query: str, result: SegmentResult) -> None:
        """Count a segment that ran."""
        counter = self.queries.setdefault(query, QueryCounter())
        counter.answered += 1
        counter.busy_s += result.busy_s
        self.overruns += result.overruns
        self.overrun_s += result.overrun_s
        for timing in result.timings:
            operator = counter.operators.setdefault(timing.operator, OperatorCounter())
            operator.calls += 1
            operator.wall_s += timing.wall_s
            operator.cpu_s += timing.cpu_s
