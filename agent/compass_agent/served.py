"""What operators took while they served, as numbers by variant: nothing of what passed through them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from compass_agent.events import ServedCounted
from compass_agent.execution import SegmentResult
from compass_agent.moments import Moments
from compass_shared.calls import OperatorTiming
from compass_shared.items import items_of
from compass_shared.pipeline import Config, variant_key
from compass_shared.profile import OperatorProfile

KEPT = 256
"""Runs of one variant that are kept for its p95 and its items: a fair sample of all that there were."""
_SIZED = 1 / 16
"""Share of the segments whose outputs' sizes are looked at: that takes a copy of each."""


@dataclass(slots=True)
class _Variant:
    times_s: Moments = field(default_factory=Moments)
    sizes: Moments = field(default_factory=Moments)
    sample: list[tuple[int | None, float]] = field(default_factory=list)
    """Items and seconds of runs."""

    def add(self, timing: OperatorTiming, size: int | None, rng: random.Random) -> None:
        self.times_s.add(timing.device_s)
        if size is not None:
            self.sizes.add(size)
        run = timing.items, timing.device_s
        if len(self.sample) < KEPT:
            self.sample.append(run)
        elif (place := rng.randrange(self.times_s.count)) < KEPT:
            self.sample[place] = run

    def profile(self, variant: str) -> OperatorProfile:
        items = items_of(self.sample)
        return OperatorProfile(
            variant=variant,
            mean_s=self.times_s.mean,
            var_s2=self.times_s.variance,
            p95_s=float(np.quantile([time_s for _, time_s in self.sample], 0.95)),
            count=self.times_s.count,
            output_mean_bytes=self.sizes.mean,
            output_var_bytes2=self.sizes.variance,
            items_mean=items.mean,
            items_var=items.var,
            item_s=items.item_s,
        )


class Served:
    """Counts, on the event loop, what segments took that ran here: for requests from here and for others'.

    Args:
        rng: Draws the times that are kept.
        since_s: Monotonic time of the start.
    """

    def __init__(self, *, rng: random.Random, since_s: float) -> None:
        self._rng = rng
        self._since_s = since_s
        self._sized: set[str] = set()
        """Pipelines of which some segment was sized since the last report."""
        self._variants: dict[str, dict[str, _Variant]] = {}

    def wants_sizes(self, pipeline: str) -> bool:
        """Whether the sizes of the next segment's outputs should be looked at."""
        # Drawn, not counted: queries that take turns must not hide one of them for good.
        wanted = pipeline not in self._sized or self._rng.random() < _SIZED
        self._sized.add(pipeline)
        return wanted

    def add(self, pipeline: str, config: Config, result: SegmentResult) -> None:
        """Count a segment that ran; what a busy machine added to an emulated call is not counted."""
        variants = self._variants.setdefault(pipeline, {})
        for timing in result.timings:
            key = variant_key(timing.operator, config.get(timing.operator, {}))
            size = result.sizes.get(timing.operator)
            variants.setdefault(key, _Variant()).add(timing, size, self._rng)

    def counted(self, now_s: float) -> ServedCounted:
        """What was counted so far; it begins from nothing again.

        A variant whose outputs were never looked at waits: without a size it would seem to make nothing.
        """
        ready = {
            pipeline: {key: found.profile(key) for key, found in variants.items() if found.sizes.count}
            for pipeline, variants in self._variants.items()
        }
        event = ServedCounted(
            over_s=now_s - self._since_s, operators={name: found for name, found in ready.items() if found}
        )
        self._since_s = now_s
        self._sized.clear()
        for variants in self._variants.values():
            for key in [key for key, found in variants.items() if found.sizes.count]:
                del variants[key]
        return event
