"""What a demo's processes reported so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCount:
    """What one worker counted since it started."""

    calls: Counter[tuple[str, str]]
    """(query, operator) -> how often it ran."""
    overruns: int
    """Emulated calls that took longer than they should have."""

    def since(self, before: WorkerCount | None) -> WorkerCount:
        """What it counted since an earlier look."""
        if before is None:
            return self
        return WorkerCount(calls=self.calls - before.calls, overruns=self.overruns - before.overruns)


@dataclass(slots=True)
class StageState:
    """What is known from events; the screen reads it."""

    clips: frozenset[str] = frozenset()
    """Pipelines whose requests are sent and scored clip by clip."""
    stage: str = ""
    """What goes on, for people."""
    phase: str = ""
    """The phase that is prepared or served."""
    measuring: dict[str, str] = field(default_factory=dict)
    """Agent -> how far its measuring is."""
    measured: dict[str, set[str]] = field(default_factory=dict)
    """Agent -> pipelines whose operators it measured."""
    linked: dict[str, set[str]] = field(default_factory=dict)
    """Device -> workers whose link it measured."""
    links: dict[str, Json] = field(default_factory=dict)
    """Device -> its link reports."""
    addresses: dict[str, str] = field(default_factory=dict)
    """Worker -> data address."""
    planned: Json | None = None
    """The coordinator's last plan."""
    assignments: dict[str, Json] = field(default_factory=dict)
    """Query -> assignment that its origin took."""
    given: dict[tuple[str, int, int], Json | None] = field(default_factory=dict)
    """(query, coordinator, sequence) -> plan of every assignment that its origin ever took."""
    requests: list[Json] = field(default_factory=list)
    """Of the phase that is being served."""
    loaded: set[str] = field(default_factory=set)
    """Agents with queries that have their inputs."""
    served: dict[str, Json] = field(default_factory=dict)
    """Agent with queries -> its last "served" event."""
    notes: list[str] = field(default_factory=list)
