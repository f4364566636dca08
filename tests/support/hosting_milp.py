"""The oracle of hosting: what is hosted and who runs by which plan, in one mixed-integer program."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from compass_coordinator.planning.hosting_case import Items

Floats = NDArray[np.float64]


def most_value(
    values: Floats, demands: Floats, capacities: Floats, uses: NDArray[np.int64], items: Items
) -> float:
    """The largest value after loading. Variables: plans that exist and are worth something, then items."""
    query, plan = np.nonzero(values > 0)
    columns, count = len(query), len(items.site)
    one_each = np.zeros((len(values), columns + count))
    one_each[query, np.arange(columns)] = 1.0
    fits = np.hstack([demands[query, plan].T, np.zeros((len(capacities), count))])
    memory = np.zeros((len(items.site_memory_bytes), columns + count))
    memory[items.site, columns + np.arange(count)] = items.memory_bytes
    needs = []
    for column, used in enumerate(uses[query, plan]):
        for item in used[used >= 0]:
            row = np.zeros(columns + count)
            row[column], row[columns + item] = 1.0, -1.0
            needs.append(row)
    answer = optimize.milp(
        -np.append(values[query, plan], -items.loading * ~items.hosted),
        integrality=np.ones(columns + count, dtype=np.int64),
        bounds=optimize.Bounds(0, 1),
        constraints=optimize.LinearConstraint(
            np.vstack([one_each, fits, memory, *needs]),
            -np.inf,
            np.concatenate([np.ones(len(values)), capacities, items.site_memory_bytes, np.zeros(len(needs))]),
        ),
        options={"mip_rel_gap": 0.0},
    )
    assert answer.status == 0, answer.message
    return -float(answer.fun)
