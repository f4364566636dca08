"""Problems whose sites are of one kind: one profile, and slowdowns and overheads of their own."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from compass_shared.problem import Problem

SPEED_CLASSES = ("light", "heavy")


def of_one_kind(problem: Problem, seed: int) -> Problem:
    """The same problem with every site profiled as the first one, and as fast as the seed says."""
    rng = Random(seed)
    first = next(iter(problem.profiles.values()))
    operators = {
        variant: replace(found, speed_class=SPEED_CLASSES[at % 2])
        for at, (variant, found) in enumerate(first.operators.items())
    }
    profiles = {
        key: replace(
            profile,
            operators=operators,
            slowdowns={name: rng.uniform(0.3, 1.5) for name in SPEED_CLASSES[: rng.randint(1, 2)]},
            overhead_s=rng.uniform(0, 0.005),
        )
        for key, profile in problem.profiles.items()
    }
    return replace(problem, profiles=profiles)
