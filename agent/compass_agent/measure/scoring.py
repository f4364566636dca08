"""What a bundle's metric gave, checked and turned into a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from compass_shared.errors import ProfileError
from compass_shared.measured import Score
from compass_shared.values import Example, Value

MetricFunction = Callable[[Value, Value], Any]
"""A bundle's ``(output, truth)``: a number, or ``(numerator, denominator)`` for a metric of kind "ratio"."""


def score_of(metric: MetricFunction, kind: str, output: Value, example: Example) -> Score:
    """Score one output.

    Args:
        metric: The bundle's function.
        kind: "mean" or "ratio".
        output: What a config made of the example.
        example: For its truth, and its name in problems.

    Raises:
        ProfileError: The metric failed, or gave what is no score; names the input.
    """
    try:
        found = metric(output, example.truth)
    except Exception as error:  # code of a bundle, which may raise anything
        problem = f"{type(error).__name__}: {error}"
        raise ProfileError(f"the metric failed on input {example.name!r}: {problem}") from error
    try:
        return _ratio(found) if kind == "ratio" else _mean(found)
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"the metric gave {found!r:.100} on input {example.name!r}: {error}"
        raise ProfileError(problem) from error


def share(score: Score) -> float:
    """One score as a number in [0, 1]; what has nothing to count is right unless something was counted."""
    if score.denominator == 0:
        return float(score.numerator >= 0)
    return min(1.0, max(0.0, score.numerator / score.denominator))


def _mean(found: Any) -> Score:
    number = _number(found)
    if not 0 <= number <= 1:
        raise ValueError("not a score in [0, 1]")
    return Score(numerator=number)


def _ratio(found: Any) -> Score:
    if isinstance(found, (str, bytes)) or not isinstance(found, Sequence) or len(found) != 2:
        raise ValueError("not two counts (numerator, denominator)")
    numerator, denominator = map(_number, found)
    if not (math.isfinite(numerator) and math.isfinite(denominator)):
        raise ValueError("not finite counts")
    if denominator < 0 or numerator > denominator:
        raise ValueError("not a denominator of at least 0 and at least its numerator")
    return Score(numerator=numerator, denominator=denominator)


def _number(found: Any) -> float:
    """A number as a float, be it one of numpy's; what only can be read as one is none."""
    return math.nan if isinstance(found, (str, bytes)) else float(found)
