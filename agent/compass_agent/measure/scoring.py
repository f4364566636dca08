"""What a bundle's metric gave, checked and turned into a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from compass_agent.bundles import Bundle
from compass_shared.errors import ProfileError
from compass_shared.measured import Score
from compass_shared.values import Example, Value

MetricFunction = Callable[[Value, Value], Any]
"""A bundle's ``(output, truth)``: a number, or ``(numerator, denominator)`` for a metric of kind "ratio"."""


Outcome: TypeAlias = Score | str
"""A score, or why there is none."""


class Metrics:
    """All metrics of a bundle.

    Args:
        bundle: Whose.

    Raises:
        ConfigError: If it has none, or one cannot be imported.
    """

    def __init__(self, bundle: Bundle) -> None:
        metric = bundle.metric()
        declared = bundle.pipeline.metric
        assert declared is not None, "bundle.metric() refuses one without"
        self.first = declared.name
        """What an SLO's accuracy is about."""
        self._functions: dict[str, MetricFunction] = {self.first: metric, **bundle.extra_metrics()}
        self.kinds = {one.name: one.kind for one in (declared, *bundle.pipeline.extra_metrics)}
        """Metric -> "mean" or "ratio"."""
        self._notices: dict[str, str] = {}
        """Extra metric -> what went wrong with it first."""
        self._told: set[str] = set()

    @property
    def others(self) -> tuple[str, ...]:
        """The extra metrics."""
        return tuple(self._functions)[1:]

    def scores(self, output: Value, example: Example) -> dict[str, Outcome]:
        """Score one output by every metric."""
        return {name: self._score(name, output, example) for name in self._functions}

    def _score(self, name: str, output: Value, example: Example) -> Outcome:
        try:
            return score_of(self._functions[name], self.kinds[name], output, example)
        except ProfileError as error:
            if name != self.first:
                self._notices.setdefault(name, f"extra metric {name!r}: {error}")
            return str(error)

    def none(self, problem: str) -> dict[str, Outcome]:
        """What becomes of a config without an output."""
        return dict.fromkeys(self._functions, problem)

    def take_notices(self) -> tuple[str, ...]:
        """What went wrong with extra metrics, each said once."""
        new = [name for name in self._notices if name not in self._told]
        self._told.update(new)
        return tuple(self._notices[name] for name in new)


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
