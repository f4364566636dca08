"""Items of a fan-out: how many a call works through, and what each of them takes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compass_shared.pipeline import Operator


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """Items of calls; of an operator that is no fan-out the mean is None."""

    mean: float | None = None
    var: float = 0.0
    item_s: float = 0.0
    """Time that one item more takes."""


def items_in(operator: Operator, inputs: Mapping[str, object]) -> int | None:
    """How many items an operator works through; None if it is no fan-out."""
    if operator.items is None:
        return None
    listed = inputs[operator.items]
    return len(listed) if isinstance(listed, list | tuple) else 0


def items_text(mean: float, sd: float, item_s: float) -> str:
    """For people: ``items 2.4 +- 1.1, 3.1 ms each``; the time only where it is known."""
    item_ms = 1e3 * item_s
    each = f"{item_ms:.0f}" if item_ms >= 10 else f"{item_ms:.2g}"
    return f"items {mean:.1f} +- {sd:.1f}" + (f", {each} ms each" if item_s else "")


def items_of(calls: Iterable[tuple[int | None, float]]) -> Items:
    """What calls tell of items: their number, and the time of one by least squares of time on number.

    Where numbers do not vary, or more items seem to take less time, the time of one is not known: 0. It is
    never so long that calls without items would take less than no time.

    Args:
        calls: Items (None: no fan-out) and time of each call, in seconds.
    """
    counted = [(items, time_s) for items, time_s in calls if items is not None]
    if not counted:
        return Items()
    counts, times_s = [items for items, _ in counted], [time_s for _, time_s in counted]
    mean, mean_s = statistics.fmean(counts), statistics.fmean(times_s)
    squares = math.fsum((count - mean) ** 2 for count in counts)
    if squares <= 0:
        return Items(mean=mean)
    slope_s = math.fsum((count - mean) * (time_s - mean_s) for count, time_s in counted) / squares
    return Items(mean=mean, var=squares / (len(counts) - 1), item_s=min(max(0.0, slope_s), mean_s / mean))
