"""One method at work on the replayed truth: what it measures and believes on the way, and its own time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.random import Generator

from compass_coordinator.estimator import Floats
from compass_coordinator.profiler.selective.operator_times import Runs
from compass_shared.measured import Done, Job
from profiling.plans import Figures
from profiling.queries import Decisions
from profiling.replay import Replay
from profiling.score import Knowledge, Quality, Z, judge
from profiling.times import figures_of, no_runs

FIRST_S = 5.0
"""Operator-seconds at which a trace begins."""
STEP = 1.25
"""Factor of spend from one point of a trace to the next."""


@dataclass(slots=True, eq=False)
class Study:
    """Measures for a method, and judges it whenever its spend has grown by a factor."""

    decisions: Decisions
    reuse: bool = True
    budget_s: float = np.inf
    """Operator-seconds after which nothing more should be measured."""
    trace: list[Quality] = field(default_factory=list)
    outside_s: float = 0.0
    """Wall seconds of replaying and judging, which are not the method's own."""
    replay: Replay = field(init=False)
    runs: Runs = field(init=False)
    _next_s: float = FIRST_S

    def __post_init__(self) -> None:
        self.replay = Replay(self.decisions.truth, reuse=self.reuse)
        self.runs = no_runs(self.decisions.truth)

    @property
    def exhausted(self) -> bool:
        """Whether the budget is spent, or nothing is left to measure."""
        return self.replay.spent_s >= self.budget_s or bool(self.replay.measured.all())

    def measure(self, page: int, configs: Sequence[int]) -> Done:
        """Score configs on one input."""
        with self._outside():
            done = self.replay.measure(page, configs)
        self.runs.take(done)
        return done

    def answer(self, job: Job) -> Done:
        """The same, for methods that speak in jobs."""
        with self._outside():
            return self.replay.answer(job)

    def look(self, known: Callable[[], Knowledge], *, last: bool = False) -> None:
        """Judge if it is time; ``known`` is asked only then."""
        if not last and self.replay.spent_s < self._next_s:
            return
        self._next_s = STEP * self.replay.spent_s
        with self._outside():
            self.trace.append(judge(self.decisions, self.replay, known()))

    def classical(self) -> Knowledge:
        """What each config's own scores say; configs without any are not chosen."""
        mean, low, high = self.replay.classical(Z)
        sampled = self.replay.measured.any(axis=0)
        return Knowledge(mean=np.where(sampled, mean, np.nan), low=low, high=high, figures=self.figures())

    def figures(self) -> Figures:
        """Of operators, from the runs so far."""
        return figures_of(self.runs.times())

    def costs(self) -> Floats:
        """(Q, C) by the operator times known so far."""
        return self.decisions.cost_matrix(self.figures())

    @contextmanager
    def _outside(self) -> Iterator[None]:
        started_s = time.perf_counter()
        yield
        self.outside_s += time.perf_counter() - started_s


Method: TypeAlias = Callable[[Study, Generator], None]
"""Measures until it is done; it looks at itself on the way and a last time at its end."""
