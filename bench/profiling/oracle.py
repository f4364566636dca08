"""The least that measuring whole configs can cost: by somebody who is told which ones are best."""

from __future__ import annotations

import numpy as np

from profiling.queries import Decisions


def oracle_s(decisions: Decisions, share: float) -> float:
    """Operator-seconds until so many queries have their best config measured on all inputs.

    Configs are taken by queries per second, what they share paid once; queries that nothing serves cost
    nothing.

    Args:
        decisions: Queries, with their best configs by the truth.
        share: Of all queries.
    """
    truth = decisions.truth
    configs, counts = np.unique(decisions.best[decisions.feasible], return_counts=True)
    left = dict(zip(configs.tolist(), counts.tolist(), strict=True))
    paid = np.zeros(len(truth.run_cpu_s), np.bool_)
    served, spent_s = float((~decisions.feasible).sum()), 0.0

    def price_s(config: int) -> float:
        runs = np.unique(truth.run_of[:, config])
        return float(truth.run_cpu_s[runs[~paid[runs]]].sum())

    while left and served < share * len(decisions.needed):
        taken = max(left, key=lambda config: left[config] / max(price_s(config), 1e-3))
        spent_s += price_s(taken)
        paid[np.unique(truth.run_of[:, taken])] = True
        served += left.pop(taken)
    return spent_s
