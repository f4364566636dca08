"""Random sampling, three ways: whole configs, whole inputs, and single scores."""

from __future__ import annotations

from numpy.random import Generator

from profiling.study import Study

CELLS = 200
"""Scores that are drawn at a time."""


def random_configs(study: Study, rng: Generator) -> None:
    """One config after another, each on all inputs; the others stay unknown."""
    inputs, configs = study.replay.measured.shape
    for config in rng.permutation(configs).tolist():
        if study.exhausted:
            break
        for page in range(inputs):
            study.measure(page, [config])
        study.look(study.classical)
    study.look(study.classical, last=True)


def random_inputs(study: Study, rng: Generator) -> None:
    """One input after another, all configs on each."""
    inputs, configs = study.replay.measured.shape
    for page in rng.permutation(inputs).tolist():
        if study.exhausted:
            break
        study.measure(page, range(configs))
        study.look(study.classical)
    study.look(study.classical, last=True)


def random_scores(study: Study, rng: Generator) -> None:
    """Any config on any input."""
    inputs, configs = study.replay.measured.shape
    order = rng.permutation(inputs * configs)
    for start in range(0, len(order), CELLS):
        if study.exhausted:
            break
        for cell in order[start : start + CELLS].tolist():
            study.measure(cell // configs, [cell % configs])
        study.look(study.classical)
    study.look(study.classical, last=True)
