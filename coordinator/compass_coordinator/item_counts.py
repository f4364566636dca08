"""Planning as if fan-outs had other numbers of items than were measured (``compass plan --items``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compass_shared.errors import ConfigError
from compass_shared.pipeline import Pipeline
from compass_shared.problem import Problem
from compass_shared.profile import OperatorProfile, at_items


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemCount:
    """How many items a fan-out is to work through a request."""

    operator: str
    pipeline: str | None = None
    """None: of the only pipeline that has such an operator."""
    mean: float
    sd: float | None = None
    """None: the spread that was measured, in proportion to the mean."""

    @classmethod
    def parse(cls, text: str) -> ItemCount:
        """Read ``[PIPELINE/]OPERATOR=MEAN[,SD]``.

        Raises:
            ValueError: If it is not of that form, or a number is negative or no number.
        """
        name, equals, figures = text.partition("=")
        pipeline, slash, operator = name.rpartition("/")
        mean, comma, sd = figures.partition(",")
        try:
            numbers = [float(mean), float(sd) if comma else 0.0]
        except ValueError:
            numbers = [math.nan]
        if not equals or not operator or not all(0 <= number < math.inf for number in numbers):
            raise ValueError(f"{text!r} is not [PIPELINE/]OPERATOR=MEAN[,SD], such as classify=6,2")
        return cls(
            operator=operator,
            pipeline=pipeline if slash else None,
            mean=numbers[0],
            sd=numbers[1] if comma else None,
        )

    def applied(self, profile: OperatorProfile) -> OperatorProfile:
        """A variant's figures with this number of items; as they are where it works through none."""
        if profile.items_mean is None:
            return profile
        if self.sd is not None:
            return at_items(profile, self.mean, self.sd**2)
        share = self.mean / profile.items_mean if profile.items_mean > 0 else 0.0
        return at_items(profile, self.mean, share**2 * profile.items_var)


def with_items(problem: Problem, counts: Sequence[ItemCount]) -> Problem:
    """A problem in which fan-outs have these numbers of items; sites that shared measurements still do.

    Raises:
        ConfigError: If a count is of no fan-out, of one in several pipelines, or of one for which no profile
            says how many items it was measured with.
    """
    for count in counts:
        problem = _with_count(problem, count)
    return problem


def _with_count(problem: Problem, count: ItemCount) -> Problem:
    pipeline = _pipeline(problem, count)
    changed: dict[int, Mapping[str, OperatorProfile]] = {}
    known = False
    profiles = dict(problem.profiles)
    for (site, name), profile in problem.profiles.items():
        if name != pipeline.name:
            continue
        if id(profile.operators) not in changed:
            operators = {
                variant: count.applied(found) if _is_of(variant, count.operator) else found
                for variant, found in profile.operators.items()
            }
            changed[id(profile.operators)] = operators
            known |= any(
                _is_of(variant, count.operator) and found.items_mean is not None
                for variant, found in operators.items()
            )
        profiles[site, name] = replace(profile, operators=changed[id(profile.operators)])
    if not known:
        raise ConfigError(
            f"--items: no profile says how many items {count.operator!r} of pipeline {pipeline.name!r} was "
            "measured with: measure it again"
        )
    return replace(problem, profiles=profiles)


def _is_of(variant: str, operator: str) -> bool:
    return variant.partition("[")[0] == operator


def _pipeline(problem: Problem, count: ItemCount) -> Pipeline:
    """The pipeline that a count is of."""
    fan_outs = {
        f"{pipeline.name}/{operator.name}": pipeline
        for pipeline in problem.pipelines.values()
        for operator in pipeline.operators
        if operator.items is not None
    }
    wanted = [
        pipeline
        for name, pipeline in fan_outs.items()
        if name.rpartition("/")[2] == count.operator and count.pipeline in (None, pipeline.name)
    ]
    if len(wanted) == 1:
        return wanted[0]
    asked = count.operator if count.pipeline is None else f"{count.pipeline}/{count.operator}"
    problem_is = "is in several pipelines" if wanted else "is no operator that works item by item"
    raise ConfigError(f"--items: {asked!r} {problem_is}; there are {', '.join(fan_outs) or 'none'}")
