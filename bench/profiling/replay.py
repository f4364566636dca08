"""Measuring, replayed: answers jobs from the truth, with the times that were measured then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from compass_coordinator.estimator import Floats
from compass_shared.measured import Done, Job, Score
from profiling.times import run_of
from profiling.truth import Truth


@dataclass(slots=True, eq=False)
class Replay:
    """What a pool of measuring processes would have done, and how much of it.

    With ``reuse`` an operator runs once for inputs of one content, whatever made them; without, every config
    runs all of its operators on every input.
    """

    truth: Truth
    reuse: bool = True
    spent_s: float = 0.0
    """Operator-seconds so far."""
    measured: np.ndarray = field(init=False)
    """(N, C) bool: what was scored so far."""
    _index: dict[str, int] = field(init=False)
    _known: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.measured = np.zeros(self.truth.scores.shape, np.bool_)
        self._index = {key: at for at, key in enumerate(self.truth.configs)}
        self._known = np.zeros(len(self.truth.run_cpu_s), np.bool_)

    def answer(self, job: Job) -> Done:
        """What a measuring process answers."""
        return self.measure(job.input, [self._index[key] for key in job.configs], id=job.id)

    def measure(self, page: int, configs: Sequence[int], *, id: int = 0) -> Done:  # noqa: A002
        """Score configs on one input."""
        truth = self.truth
        rows = np.asarray(configs, np.int64)
        wanted = truth.run_of[page, rows].ravel()
        if self.reuse:
            # In the order in which they first come up.
            wanted = wanted[np.sort(np.unique(wanted, return_index=True)[1])]
            wanted = wanted[~self._known[wanted]]
            self._known[wanted] = True
        self.measured[page, rows] = True
        self.spent_s += float(truth.run_cpu_s[wanted].sum())
        scores = truth.scores[page, rows].tolist()
        return Done(
            id=id,
            input=page,
            scores={
                truth.configs[config]: Score(numerator=score)
                for config, score in zip(configs, scores, strict=True)
            },
            runs=tuple(run_of(truth, run) for run in wanted.tolist()),
            reused=truth.run_of.shape[2] * len(rows) - len(wanted),
        )

    def classical(self, z: float) -> tuple[Floats, Floats, Floats]:
        """Mean, low and high (C,) from each config's own scores alone; [0, 1] where there are fewer than two.

        Normal intervals with the correction for a finite set of inputs, cut to [0, 1].
        """
        count = self.measured.sum(axis=0)
        scores = np.where(self.measured, self.truth.scores, 0.0)
        mean = scores.sum(axis=0) / np.maximum(count, 1)
        square = np.where(self.measured, (self.truth.scores - mean) ** 2, 0.0).sum(axis=0)
        total = len(self.measured)
        variance = square / np.maximum(count - 1, 1) / np.maximum(count, 1) * (1 - count / total)
        half = np.where((count > 1) | (count == total), z * np.sqrt(variance), 1.0)
        return mean, np.maximum(mean - half, 0.0), np.minimum(mean + half, 1.0)
