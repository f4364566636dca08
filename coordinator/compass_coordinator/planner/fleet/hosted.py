"""Which variants plans need where: what a site with little memory has to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Indices
from compass_coordinator.planner.fleet.coefficients import Features
from compass_coordinator.planner.fleet.grouping import Group
from compass_coordinator.planner.fleet.tables import FleetTables
from compass_shared.pipeline import Pipeline, variant_key


def hosted_items(
    groups: Sequence[Group],
    features: Sequence[Features],
    tables: FleetTables,
    group: Indices,
    instance: Indices,
    row: Indices,
) -> tuple[NDArray[np.int32], tuple[tuple[str, str, str], ...]]:
    """Items of some plans.

    Args:
        groups: Of instances.
        features: Templates of each.
        tables: Of the fleet.
        group: (queries, K) of each plan, < 0 for none.
        instance: (queries, K) number in its group.
        row: (queries, K) template of the group.

    Returns:
        (queries, K, operators) indices of items, -1 for none; and the items: site, pipeline, variant key.
    """
    names = tables.sites.names
    pipelines = {found.templates.pipeline.name: found.templates.pipeline for found in features}
    operators = max((len(pipeline.operators) for pipeline in pipelines.values()), default=0)
    codes = np.full((*group.shape, operators), -1, dtype=np.int64)
    labels, bases = _variants(pipelines)
    for number, (instances, found) in enumerate(zip(groups, features, strict=True)):
        at = np.nonzero(group == number)
        rows, sites = found.rows[row[at]], instances.sites[instance[at]]
        roles, variants = found.templates.placement[rows], found.templates.variants[rows]
        base = bases[instances.pipeline]
        placed = np.take_along_axis(sites, roles.astype(np.int64), axis=1)
        codes[..., : len(base)][at] = (base + variants) * len(names) + placed
    seen, inverse = np.unique(codes, return_inverse=True)
    known = seen >= 0
    items = inverse.reshape(codes.shape).astype(np.int32) - np.int32((~known).sum())
    return items, tuple((names[code % len(names)], *labels[code // len(names)]) for code in seen[known])


def _variants(pipelines: Mapping[str, Pipeline]) -> tuple[list[tuple[str, str]], dict[str, Indices]]:
    """Every variant as (pipeline, key), and by pipeline the number of the first variant of each operator."""
    labels: list[tuple[str, str]] = []
    bases: dict[str, Indices] = {}
    for name, pipeline in sorted(pipelines.items()):
        base = []
        for operator in pipeline.operators:
            base.append(len(labels))
            labels += [(name, variant_key(operator.name, knobs)) for knobs in operator.variants()]
        bases[name] = np.array(base, dtype=np.int64)
    return labels, bases
