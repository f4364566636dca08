"""Successive halving for batches of queries (Jamieson & Talwalkar, AISTATS 2016).

For every batch the configs that could serve one of its queries start on a few inputs. After each round the
half that matters most to the batch goes on to twice as many, until the rest is known on all inputs. A config
matters as much as its best rank in any query: configs that are accurate enough as far as is known come by
cost, then the others by what they lack. Results and operator outputs are shared by all batches.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from compass_coordinator.estimator import Floats, Indices
from profiling.study import Study

FIRST = 12
"""Inputs of the first round."""
BATCH = 100
"""Queries."""
KEPT = 4
"""Configs at which a batch ends."""


def successive_halving(study: Study, rng: Generator) -> None:
    """Batch after batch, in the order of the queries."""
    inputs, configs = study.replay.measured.shape
    order = rng.permutation(inputs)
    _measure_all(study, order[:1], np.arange(configs))  # what operators take, before anything can be ranked
    queries = np.arange(len(study.decisions.needed))
    for start in range(0, len(queries), BATCH):
        if study.exhausted:
            break
        _halve(study, order, queries[start : start + BATCH])
    study.look(study.classical, last=True)


def _halve(study: Study, order: Indices, batch: Indices) -> None:
    cost = study.costs()[batch]
    alive = np.flatnonzero(np.isfinite(cost).any(axis=0))
    count = FIRST
    while len(alive) and not study.exhausted:
        _measure_all(study, order[:count], alive)
        if count >= len(order) or len(alive) <= KEPT:
            _measure_all(study, order, alive)
            break
        rank = _ranks(study, batch, cost)[alive]
        alive = alive[np.argsort(rank, kind="stable")[: max(KEPT, len(alive) // 2)]]
        count *= 2


def _ranks(study: Study, batch: Indices, cost: Floats) -> Floats:
    """(C,) the best rank of every config in any query of the batch; ties go to the better mean rank."""
    needed = study.decisions.needed[batch, np.newaxis]
    mean = np.nan_to_num(study.classical().mean)
    lacking = np.maximum(needed - mean, 0.0)
    # Any config that lacks something comes after all that do not.
    key = np.where(lacking > 0, 1e6 * (1 + lacking), cost)
    ranks = np.where(np.isfinite(cost), np.argsort(np.argsort(key, axis=1), axis=1), cost.shape[1])
    return np.asarray(ranks.min(axis=0) - 1 / (1 + ranks.mean(axis=0)))


def _measure_all(study: Study, pages: Indices, configs: Indices) -> None:
    for page in pages.tolist():
        missing = configs[~study.replay.measured[page, configs]]
        if len(missing):
            study.measure(page, missing.tolist())
            study.look(study.classical)
