"""The selective profiler, driven by the replay, and with each of its savings switched off."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.random import Generator

from compass_coordinator.profiler.selective import Decisions, OperatorTimes, Options, Profiler
from profiling.score import CONFIDENCE, Knowledge
from profiling.study import Study
from profiling.times import figures_of

ABLATIONS: Mapping[str, Options] = {
    "selective": Options(confidence=CONFIDENCE),
    "without strata": Options(confidence=CONFIDENCE, strata=False),
    "without prefix reuse": Options(confidence=CONFIDENCE, reuse=False),
    "without early stopping": Options(confidence=CONFIDENCE, early_stopping=False),
    "without transfer": Options(confidence=CONFIDENCE, transfer=False),
}


def selective(study: Study, rng: Generator, *, options: Options) -> None:
    """Ask and tell until it is finished."""
    truth, queries = study.decisions.truth, study.decisions

    def decide(times: OperatorTimes) -> Decisions:
        return Decisions(
            costs=queries.cost_matrix(figures_of(times)),
            needed=queries.needed,
            weights=np.ones(len(queries.needed)),
        )

    profiler = Profiler(truth.pipeline, truth.inputs, decide, rng, options=options)

    def known() -> Knowledge:
        found = profiler.known()
        return Knowledge(mean=found.mean, low=found.low, high=found.high, figures=figures_of(profiler.times))

    while not profiler.finished and not study.exhausted:
        for job in profiler.ask():
            profiler.tell(study.answer(job))
        study.look(known)
    study.look(known, last=True)
