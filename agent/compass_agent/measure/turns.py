"""Which variants the passes of a measurement run: the least tried of those not known well enough yet."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from compass_agent.measure.passes import Choice, Pass, Passes
from compass_agent.moments import Moments

MIN_TRIES = 4
MIN_CLIPS = 2
"""Clips' worth of requests before a mean may count as known."""
SETTLED_REL_SE = 0.04
"""A mean is known well enough when its standard error is this small beside it."""


@dataclass(slots=True)
class _Tried:
    known: int = MIN_TRIES
    """Tries before its mean may count as known."""
    tries: int = 0
    """Requests so far."""
    times_s: Moments = field(default_factory=Moments)

    @property
    def often(self) -> bool:
        """Whether it was tried on enough requests, whatever is known by then."""
        return self.tries >= MIN_TRIES

    @property
    def settled(self) -> bool:
        """Whether the mean is known well enough, or cannot be."""
        if self.times_s.count == 0:
            return self.often
        if self.tries < self.known:
            return False
        error_s = math.sqrt(self.times_s.variance / self.times_s.count)
        return error_s <= SETTLED_REL_SE * self.times_s.mean


class Turns:
    """Gives variants their turns.

    Args:
        passes: Whose operators.
        rng: Draws among equals.
        longest: Most requests of a pass; above 1 passes are clips, in which a stateful operator keeps its
            variant.
    """

    def __init__(self, passes: Passes, rng: random.Random, *, longest: int = 1) -> None:
        known = MIN_TRIES if longest == 1 else max(MIN_TRIES, MIN_CLIPS * longest)
        self._table = {
            name: {key: _Tried(known=known) for key in keys} for name, keys in passes.choices.items()
        }
        self._stateful = {operator.name for operator in passes.operators if operator.stateful}
        self._rng = rng

    @property
    def variants(self) -> int:
        """How many there are."""
        return sum(map(len, self._table.values()))

    def choices(self, requests: int) -> list[Choice]:
        """Variants for the requests of one pass."""
        coming: Counter[str] = Counter()
        held: dict[str, str] = {}
        choices: list[Choice] = []
        for _ in range(requests):
            choice = {
                name: held.get(name) or self._next(tried, coming) for name, tried in self._table.items()
            }
            held.update((name, choice[name]) for name in self._stateful)
            coming.update(choice.values())
            choices.append(choice)
        return choices

    def count(self, done: Pass) -> None:
        """Take what a pass found."""
        tried = {key: found for variants in self._table.values() for key, found in variants.items()}
        for key in done.failed:
            tried[key].tries += 1
        for sample in done.samples:
            tried[sample.variant].tries += 1
            tried[sample.variant].times_s.add(sample.lasted_s)

    def settled(self) -> int:
        """How many need no more tries."""
        return sum(tried.settled for tried in self._reached())

    def all_settled(self) -> bool:
        """Whether none needs more."""
        return all(tried.settled for tried in self._reached())

    def all_tried(self) -> bool:
        """Whether all had the least of tries."""
        return all(tried.often for tried in self._reached())

    def _reached(self) -> list[_Tried]:
        """All variants, but of operators after one all of whose variants always fail: they are never run."""
        found: list[_Tried] = []
        for variants in self._table.values():
            found += variants.values()
            if all(tried.often and not tried.times_s.count for tried in variants.values()):
                break
        return found

    def _next(self, variants: Mapping[str, _Tried], coming: Counter[str]) -> str:
        """The least tried of those that are not settled; when all are, any that did not always fail."""
        able = [key for key, tried in variants.items() if tried.times_s.count] or list(variants)
        open_ones = [key for key, tried in variants.items() if not tried.settled] or able
        tries = {key: variants[key].tries + coming[key] for key in open_ones}
        fewest = min(tries.values())
        return self._rng.choice([key for key in open_ones if tries[key] == fewest])
