"""What operator variants take, from runs on some of the inputs and under some of the configs.

Inputs differ more than repeats do: a page with many lines takes every recogniser long. And what ran before
matters: a detector that finds fewer lines leaves less to recognise. So a run's time is modelled as a product
of its variant's effect, its input's, and one of every variant upstream; the product is then averaged over all
inputs and all that may be upstream, whichever were measured. Products are fitted to totals, not to logarithms
(a run on an empty page takes nearly nothing): every effect is scaled until the runs that it is part of take
as long together as they did, in turns (iterative proportional fitting; Deming & Stephan 1940).

Of clips every request counts as an input of its own: figures are of a request, as planners need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compass_coordinator.profiler.selective.space import Floats, Indices, Space
from compass_shared.items import items_of
from compass_shared.measured import Done, OperatorRun

ROUNDS = 15
"""Times that every effect is scaled."""
INPUT_PRIOR = 0.01
"""Typical runs' worth of evidence that an input is like the others."""
UPSTREAM_PRIOR = 0.3
"""And that a variant upstream makes no difference."""
NOWHERE = -1
"""Config of a run of which it is not known."""
TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperatorTimes:
    """What operator variants took; all arrays are (variants,), NaN for variants that never ran."""

    mean_s: Floats
    var_s2: Floats
    p95_s: Floats
    count: Indices
    """Requests that they ran for."""
    output_mean_bytes: Floats
    output_var_bytes2: Floats
    items_mean: Floats
    """Of a call; NaN of operators that are no fan-out as well."""
    items_var: Floats
    item_s: Floats
    """Time that one item more takes."""


class Runs:
    """Operator runs by variant, input and config: thread CPU time, output size and items.

    Args:
        space: Names the variants.
        requests: Of each input of the set.
    """

    def __init__(self, space: Space, requests: Sequence[int]) -> None:
        self._first = np.cumsum([0, *requests])
        """(inputs + 1,) place of the first request of each among those of all."""
        self._choices = space.node_variant[space.nodes]
        self._upstream = _upstream(space, self._choices)
        self._row = {variant: at for at, variant in enumerate(space.variants)}
        self._config = {key: at for at, key in enumerate(space.keys)}
        self._column = np.zeros(len(space.variants), dtype=np.intp)
        self._column[self._choices] = np.arange(self._choices.shape[1])
        # Operator -> variant, request and config of its runs, and what each took.
        self._where: list[list[tuple[int, int, int]]] = [[] for _ in self._upstream]
        self._what: list[list[tuple[float, float, float]]] = [[] for _ in self._upstream]
        self._told: set[tuple[int, OperatorRun]] = set()
        self.spent_s = 0.0
        """Operator-seconds so far, failed runs included."""

    def take(self, done: Done) -> None:
        """Take all runs of a job, and the times of results that were found on disk.

        Both come config by config, each in the order of its operators, without what was in memory: a run
        belongs to the next operator that has its variant. What another process ran, it may have told already.
        """
        self.spent_s += sum(run.cpu_s for run in done.runs)
        self._assign(done, done.runs)
        self._assign(done, [run for run in done.recalled if (done.input, run) not in self._told])

    def _assign(self, done: Done, runs: Sequence[OperatorRun]) -> None:
        configs = [self._config[key] for key in done.scores if key in self._config]
        wanted = self._choices[configs].ravel()
        start = 0
        for run in runs:
            found = np.flatnonzero(wanted[start:] == self._row.get(run.variant, NOWHERE))
            config = NOWHERE
            if len(found):
                start += int(found[0]) + 1
                config = configs[(start - 1) // self._choices.shape[1]]
            self._add(run, done.input, config)

    def _add(self, run: OperatorRun, place: int, config: int) -> None:
        self._told.add((place, run))
        row = self._row.get(run.variant)
        if row is None:
            return
        column, start, end = self._column[row], int(self._first[place]), int(self._first[place + 1])
        for at, one in run.requests.items():
            if start + at < end:
                items = np.nan if one.items is None else float(one.items)
                self._where[column].append((row, start + at, config))
                self._what[column].append((one.cpu_s, float(one.output_bytes), items))

    def times(self) -> OperatorTimes:
        """Distributions so far."""
        size, shape = len(self._row), (len(self._row), int(self._first[-1]))
        moments, p95_s, count = np.full((3, 2, size), np.nan), np.full(size, np.nan), np.zeros(size, np.intp)
        item_s = np.zeros(size)
        for column, (where, what) in enumerate(zip(self._where, self._what, strict=True)):
            if not where:
                continue
            variant, place, config = np.array(where, dtype=np.intp).T
            taken = np.array(what)
            count += np.bincount(variant, minlength=size)
            upstream = [self._levels(other, config) for other in self._upstream[column]]
            fans_out = not np.isnan(taken[:, 2]).any()
            for kind in range(3 if fans_out else 2):
                found = _over_all(taken[:, kind], variant, place, upstream, shape)
                moments[kind][:, found[0] >= 0] = found[:, found[0] >= 0]
            for row in np.unique(variant):
                own = taken[variant == row]
                p95_s[row] = _p95(own[:, 0], moments[0, 0, row])
                item_s[row] = _item_s(own, moments[:, 0, row]) if fans_out else 0.0
        return OperatorTimes(
            mean_s=moments[0, 0],
            var_s2=moments[0, 1],
            p95_s=p95_s,
            count=count,
            output_mean_bytes=moments[1, 0],
            output_var_bytes2=moments[1, 1],
            items_mean=moments[2, 0],
            items_var=moments[2, 1],
            item_s=item_s,
        )

    def _levels(self, column: int, config: Indices) -> tuple[Indices, int]:
        """Variant that an operator upstream has in these configs, from 0, and how many it has."""
        variants = np.unique(self._choices[:, column])
        found = np.searchsorted(variants, self._choices[config, column])
        return np.where(config == NOWHERE, len(variants), found), len(variants)


def _upstream(space: Space, choices: Indices) -> list[list[int]]:
    """Operator -> those upstream of it that have more than one variant: what its nodes determine."""
    columns = range(choices.shape[1])
    found = []
    for column in columns:
        nodes = len(np.unique(space.nodes[:, column]))
        found.append(
            [
                other
                for other in columns
                if other != column
                and len(np.unique(choices[:, other])) > 1
                and len(np.unique(np.stack([space.nodes[:, column], choices[:, other]]), axis=1).T) == nodes
            ]
        )
    return found


def _over_all(
    values: Floats,
    variant: Indices,
    place: Indices,
    upstream: Sequence[tuple[Indices, int]],
    shape: tuple[int, int],
) -> Floats:
    """Mean and variance (2, variants) over all inputs that any variant ran on; NaN for those that never ran.

    Args:
        values: (n,) what runs of one operator took.
        variant: (n,) of those runs.
        place: (n,) input.
        upstream: For each operator upstream its variant (n,) and their number, which stands for "not known".
        shape: Numbers of variants and of inputs.
    """
    typical = float(values.mean())
    effects = [np.full(shape[0], typical), np.ones(shape[1]), *(np.ones(size + 1) for _, size in upstream)]
    index = [variant, place, *(levels for levels, _ in upstream)]
    prior = [0.0, INPUT_PRIOR * typical, *(UPSTREAM_PRIOR * typical for _ in upstream)]
    fitted = np.full(len(values), typical)
    for _ in range(ROUNDS if typical > 0 else 0):
        for at, (rows, weight) in enumerate(zip(index, prior, strict=True)):
            others = fitted / effects[at][rows]
            size = len(effects[at])
            took, expected = (
                np.bincount(rows, values, size) + weight,
                np.bincount(rows, others, size) + weight,
            )
            effects[at] = np.maximum(took / np.maximum(expected, TINY), TINY)
            fitted = others * effects[at][rows]
    ran = np.bincount(place, minlength=shape[1]) > 0
    level = float(np.prod([effect[:-1].mean() for effect in effects[2:]]))
    runs = np.bincount(variant, minlength=shape[0])
    scale = np.bincount(variant, values, shape[0]) / np.maximum(np.bincount(variant, fitted, shape[0]), TINY)
    over_inputs = (scale * effects[0] * level)[:, np.newaxis] * effects[1][ran]
    missed = _residual(values - scale[variant] * fitted, variant, place, shape)
    found = np.stack([over_inputs.mean(axis=1), over_inputs.var(axis=1) + missed])
    return np.where(runs == 0, np.nan, found)


def _residual(errors: Floats, variant: Indices, place: Indices, shape: tuple[int, int]) -> Floats:
    """(variants,) mean square over inputs of what the product misses there on average."""
    cell = variant * shape[1] + place
    runs = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    total = np.bincount(cell, errors, shape[0] * shape[1]).reshape(shape)
    squares = (total / np.maximum(runs, 1)) ** 2
    return np.asarray(squares.sum(axis=1) / np.maximum((runs > 0).sum(axis=1), 1))


def _item_s(taken: Floats, means: Floats) -> float:
    """Time of one item by runs (runs, 3) of a variant, no more than the mean over all leaves for it."""
    slope_s = items_of((int(items), time_s) for time_s, _, items in taken.tolist()).item_s
    mean_s, _, items = means
    return min(slope_s, mean_s / items) if items > 0 else slope_s


def _p95(taken: Floats, mean_s: float) -> float:
    """Of the runs, moved along with the mean to the inputs that it has not seen."""
    own = float(taken.mean())
    return float(np.quantile(taken, 0.95)) * (mean_s / own if own > 0 else 1.0)
