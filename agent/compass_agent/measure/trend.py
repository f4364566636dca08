"""Whether a machine slows down (or speeds up) while it works: a clock governor, or heat.

The logarithm of every time is compared with the median of *the same work*, so that inputs which happen to be
heavier late do not look like heat. What remains is summed up by blocks of time, and the last third of them is
held against the first. The noise of that difference is judged by what a line (Theil-Sen) or a step, whichever
fits better, leaves over, and widened for the memory that a machine's noise has. On blocks of noise alone this
finds a trend in less than 1%, its nominal rate; in 4% where neighbouring blocks correlate by 0.7. (A rank
test such as Mann-Kendall's misses a step in 20 blocks of correlated noise nine times in ten, however high.)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compass_agent.measure.series import Floats, Sample

ALPHA = 0.01
"""Rate at which a steady machine is called a changing one."""
MIN_CHANGE = 0.03
"""Smaller changes are not worth a word, however sure."""
_BLOCKS = 40
_MIN_BLOCKS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """How times changed from the first third of a measurement to its last."""

    change: float
    """Relative: 0.18 if calls take 18% longer at the end."""
    over_s: float
    p_value: float
    """Of the hypothesis that nothing changes."""
    settled: bool
    """Whether most of the change was over by the last third."""

    @property
    def found(self) -> bool:
        """Whether the machine does change, by more than is worth a word."""
        return self.p_value < ALPHA and abs(self.change) >= MIN_CHANGE

    def __str__(self) -> str:
        if not self.found:
            return f"steady over {_duration(self.over_s)}"
        word = "slows" if self.change > 0 else "speeds up"
        end = "figures are of the last third"
        if not self.settled:
            end += ", and it still changes: measure longer"
        return f"{word} by {abs(self.change):.0%} over {_duration(self.over_s)}: {end}"


def trend_of(samples: Sequence[Sample]) -> Trend | None:
    """Find out whether calls get slower or faster with time.

    Args:
        samples: Calls of one or more variants; only work that was done more than once says anything.

    Returns:
        None if there are too few of those.
    """
    at, residual = _residuals(samples)
    blocks = min(_BLOCKS, len(at) // 2)
    if blocks < _MIN_BLOCKS:
        return None
    parts = np.array_split(residual, blocks)
    level = np.array([float(np.median(part)) for part in parts])
    first, middle, last = (float(np.median(third)) for third in np.array_split(residual, 3))
    change = last - first
    return Trend(
        change=math.expm1(change),
        over_s=float(at[-1] - at[0]),
        p_value=_p_value(level),
        settled=abs(last - middle) <= abs(change) / 3,
    )


def last_third(samples: Sequence[Sample]) -> list[Sample]:
    """The samples of the last third of the time; all of them if none is."""
    if not samples:
        return []
    start, end = min(s.at_s for s in samples), max(s.at_s for s in samples)
    return [sample for sample in samples if sample.at_s >= end - (end - start) / 3]


def swaps(early: Mapping[str, float], late: Mapping[str, float]) -> list[tuple[str, str]]:
    """Pairs of variants whose order changed: (faster early, faster late).

    Args:
        early: Variant -> time in the first third.
        late: The same in the last.
    """
    both = sorted(early.keys() & late.keys(), key=early.__getitem__)
    return [
        (first, second)
        for place, first in enumerate(both)
        for second in both[place + 1 :]
        if early[first] * (1 + MIN_CHANGE) < early[second] and late[second] * (1 + MIN_CHANGE) < late[first]
    ]


def _residuals(samples: Iterable[Sample]) -> tuple[Floats, Floats]:
    """Times of day and log times beside the median of the same work, in order of time."""
    groups: dict[tuple[str, Hashable], list[tuple[float, float]]] = {}
    for sample in samples:
        if sample.lasted_s > 0:
            key = sample.variant, sample.work
            groups.setdefault(key, []).append((sample.at_s, math.log(sample.lasted_s)))
    pairs: list[tuple[float, float]] = []
    for found in groups.values():
        if len(found) > 1:
            middle = float(np.median([value for _, value in found]))
            pairs.extend((at, value - middle) for at, value in found)
    ordered = np.array(sorted(pairs)).reshape(-1, 2)
    return ordered[:, 0], ordered[:, 1]


def _p_value(level: Floats) -> float:
    """Two-sided test of equally spaced values: is the last third at another level than the first?"""
    count, third = len(level), len(level) // 3
    rest = min(_without_line(level), _without_step(level), key=_power)
    freedom = count - 4
    noise = math.sqrt(_power(rest) / freedom)
    if noise == 0:
        return 0.0 if np.ptp(level) > 0 else 1.0
    memory = _memory(rest)
    error = noise * math.sqrt(2 / third * (1 + memory) / (1 - memory))
    student = float(level[-third:].mean() - level[:third].mean()) / error
    # Student's t as a normal deviate (Wallace 1959), good to three digits here.
    deviate = math.sqrt(freedom * math.log1p(student**2 / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
    return math.erfc(deviate / math.sqrt(2))


def _without_line(level: Floats) -> Floats:
    rows, columns = np.triu_indices(len(level), 1)
    slope = float(np.median((level[columns] - level[rows]) / (columns - rows)))
    rest: Floats = level - slope * np.arange(len(level))
    return rest - float(rest.mean())


def _without_step(level: Floats) -> Floats:
    parts = ((level[:place], level[place:]) for place in range(2, len(level) - 1))
    return min((np.concatenate([a - a.mean(), b - b.mean()]) for a, b in parts), key=_power)


def _power(rest: Floats) -> float:
    return float(rest @ rest)


def _memory(rest: Floats) -> float:
    """Lag-1 correlation, in [0, 0.9]; estimated from few values after a fit, it is too small by 6/n or so."""
    count = len(rest)
    found = float(rest[1:] @ rest[:-1]) / _power(rest)
    return min(0.9, max(0.0, (count * found + 6) / (count - 8)))


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
