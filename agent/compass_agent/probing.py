"""What an agent measures of its operators, in which order: its own first choice, then what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from itertools import chain, zip_longest

from compass_agent.events import MeasureOperators
from compass_shared.messages import MAX_PROBES, ProbeMessage
from compass_shared.pipeline import Pipeline, variant_key

FIRST_PROBES = 5
"""Variants that an agent measures by its own choice, where it is not to measure all of them."""

_KEPT = 4
"""Of one speed class: the most work, the least, and two in between."""


class Measure(Enum):
    """Which operators an agent measures."""

    FULL = "full"
    """All of them at the start, then what the coordinator asks for."""
    PROBES = "probes"
    """A handful at the start, then what the coordinator asks for; it predicts the others."""
    NOTHING = "nothing"
    """None, whoever asks."""


class ProbeBook:
    """Variants that wait to be measured; one measurement is under way at a time.

    Args:
        pipelines: Installed pipelines by name.
        measure: What the agent measures at all.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], measure: Measure) -> None:
        self._pipelines = dict(pipelines)
        self._measure = measure
        self._wanted: dict[str, dict[str, None] | None] = {}
        """Pipeline -> variants in the order in which they were asked for; None: all of them."""
        self._begun = False
        self._running = False

    def begin(self) -> None:
        """The agent is up: what it measures unasked joins what it was asked for meanwhile."""
        if self._begun:
            return
        self._begun = True
        for name, pipeline in self._pipelines.items():
            if self._measure is Measure.FULL:
                self._wanted[name] = None
            elif self._measure is Measure.PROBES:
                # Whoever asked already knows better which of them teach most.
                self._wanted.setdefault(name, dict.fromkeys(first_probes(pipeline)))

    def ask(self, probes: ProbeMessage) -> str | None:
        """Add what the coordinator wants; what waits already is not measured twice.

        Returns:
            None, or why nothing of it will be measured.
        """
        if self._measure is Measure.NOTHING:
            return "this agent measures nothing"
        pipeline = self._pipelines.get(probes.pipeline)
        if pipeline is None or pipeline.digest != probes.digest:
            return f"pipeline {probes.pipeline!r} {probes.digest[:12]} is not installed here"
        if len(probes.variants) > MAX_PROBES:
            return f"{len(probes.variants)} variants are more than {MAX_PROBES}"
        known = variants_of(pipeline)
        found = {variant: None for variant in probes.variants if variant in known}
        if not found:
            return f"pipeline {probes.pipeline!r} has none of the {len(probes.variants)} variants"
        waiting = self._wanted.setdefault(probes.pipeline, {})
        if waiting is not None:
            waiting.update(found)
        return None

    def next(self) -> MeasureOperators | None:
        """What to measure now, if anything and nothing else is under way."""
        if not self._begun or self._running or not self._wanted:
            return None
        self._running = True
        name = next(iter(self._wanted))
        wanted = self._wanted.pop(name)
        return MeasureOperators(pipeline=name, variants=None if wanted is None else tuple(wanted))

    def ended(self) -> None:
        """What was under way ended, well or not."""
        self._running = False


def variants_of(pipeline: Pipeline) -> dict[str, str]:
    """Variant key -> speed class, of every variant in file order."""
    return {
        variant_key(operator.name, knobs): operator.speed_class
        for operator in pipeline.operators
        for knobs in operator.variants()
    }


def first_probes(pipeline: Pipeline, count: int = FIRST_PROBES) -> tuple[str, ...]:
    """A few variants that are far apart in work, of every speed class in turn.

    Nothing is known of their times yet: bytes of the model stand for work, then the place in the file.
    Classes take turns, the one with the most bytes first; each gives its largest, its smallest, then what
    lies between. (How a class scales is seen from its large ones, the constant of each call from its small.)
    """
    classes: dict[str, list[tuple[int, str]]] = {}
    for operator in pipeline.operators:
        for knobs in operator.variants():
            model = operator.model_for(knobs)
            size = 0 if model is None else pipeline.models[model].size_bytes
            classes.setdefault(operator.speed_class, []).append((size, variant_key(operator.name, knobs)))
    by_bytes = sorted(classes.values(), key=lambda found: -sum(size for size, _ in found))
    turns = chain.from_iterable(zip_longest(*(_spread(found) for found in by_bytes)))
    return tuple(variant for variant in turns if variant is not None)[:count]


def _spread(sized: list[tuple[int, str]]) -> list[str]:
    """Largest, smallest, and those at a third and two thirds between them."""
    ordered = [variant for _, variant in sorted(sized, key=lambda item: item[0])]
    last = len(ordered) - 1
    places = (last, 0, *(last * step // (_KEPT - 1) for step in range(1, _KEPT - 1)))
    return list(dict.fromkeys(ordered[place] for place in places))
