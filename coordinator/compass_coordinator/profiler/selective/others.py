"""Extra metrics: scored on whatever was measured for the metric that decides, so each config has a few."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np

from compass_coordinator.profiler.selective.alone import believe_alone
from compass_coordinator.profiler.selective.input_order import InputOrder
from compass_coordinator.profiler.selective.observations import Observations
from compass_coordinator.profiler.selective.space import Floats, Indices, Space
from compass_shared.measured import Done


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownOther:
    """What is known of one extra metric; arrays are (configs,)."""

    mean: Floats
    """Meaningless where the count is 0."""
    standard_error: Floats
    """Of the mean as an estimate for new inputs from the same source."""
    counts: Indices
    """Inputs measured."""


class Others:
    """Scores of extra metrics.

    Nothing is measured for their sake, and nothing of one config is inferred from others: the inputs are
    those that the profiler chose, in the order that all configs share and that is balanced over strata.

    Args:
        space: The configs.
        inputs: Size of the input set.
        metrics: Their names.
    """

    def __init__(self, space: Space, inputs: int, metrics: Iterable[str]) -> None:
        self._observations = {name: Observations(space, inputs) for name in metrics}

    def add(self, done: Done) -> None:
        """Take the answer to a job; a config without an output has 0 by every metric."""
        for name, found in self._observations.items():
            there = done.others.get(name, {})
            scores = {
                key: there.get(key) for key, first in done.scores.items() if key in there or first is None
            }
            found.add(msgspec.structs.replace(done, scores=scores, problems={}))

    def known(self, order: InputOrder) -> dict[str, KnownOther]:
        """What is known of each, by its own scores alone: weighted by strata where all were reached."""
        return {name: _known(found, order) for name, found in self._observations.items()}


def _known(observations: Observations, order: InputOrder) -> KnownOther:
    scores = order.scores(observations)
    belief, inputs = believe_alone(scores), len(scores.values)
    whole = scores.seen == inputs
    exact = np.nan_to_num(observations.accuracies(), nan=0.0)
    left = np.where(whole, 0.0, belief.spread**2)
    return KnownOther(
        mean=np.where(whole, exact, belief.mean),
        standard_error=np.sqrt(left + belief.input_var / inputs),
        counts=scores.seen,
    )
