"""Evaluating templates at instances: every pair of a block, by matrix products, path by path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.fleet.coefficients import Coefficients, Features
from compass_shared.problem import Z95

_ROUNDING = 1e-9
"""Relative: a limit is looked at unless the block's highest corner is below it by more than rounding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """What templates are predicted to do; arrays are alike, ``(instances, templates)`` or ``(pairs,)``."""

    latency_mean_s: Floats
    """Of the path whose p95 is the largest."""
    latency_var_s2: Floats
    latency_p95_s: Floats
    cost_usd: Floats
    """A request."""
    amounts: Floats
    """One axis more: of each slot, core seconds or bytes a request."""


def evaluate_block(features: Features, coefficients: Coefficients, rows: Indices) -> Evaluation:
    """Every given template at every instance.

    Args:
        features: Of the pattern's templates.
        coefficients: Of some instances of the pattern.
        rows: Templates to evaluate.
    """
    shape = (len(coefficients), len(rows))
    mean_s, var_s2, p95_s = np.zeros(shape), np.zeros(shape), np.full(shape, -np.inf)
    for means, variances in zip(features.means, features.variances, strict=True):
        path_mean_s = coefficients.mean_s @ means[rows].T
        path_var_s2 = coefficients.var_s2 @ variances[rows].T
        path_p95_s = path_mean_s + Z95 * np.sqrt(path_var_s2)
        worse = path_p95_s > p95_s
        for worst, path in ((mean_s, path_mean_s), (var_s2, path_var_s2), (p95_s, path_p95_s)):
            np.copyto(worst, path, where=worse)
    amounts = [_amount(features, coefficients, rows, slot) for slot in range(features.slots)]
    return Evaluation(
        latency_mean_s=mean_s,
        latency_var_s2=var_s2,
        latency_p95_s=p95_s,
        cost_usd=coefficients.cost_usd @ features.totals[rows].T,
        amounts=np.stack(amounts, axis=-1),
    )


def evaluate_pairs(features: Features, coefficients: Coefficients, rows: Indices) -> Evaluation:
    """One template at each instance: ``rows[i]`` at instance i."""
    totals = features.totals[rows]
    mean_s, var_s2, p95_s = (np.full(len(rows), fill) for fill in (0.0, 0.0, -np.inf))
    for means, variances in zip(features.means, features.variances, strict=True):
        path_mean_s = np.einsum("if,if->i", coefficients.mean_s, means[rows])
        path_var_s2 = np.einsum("if,if->i", coefficients.var_s2, variances[rows])
        path_p95_s = path_mean_s + Z95 * np.sqrt(path_var_s2)
        worse = path_p95_s > p95_s
        for worst, path in ((mean_s, path_mean_s), (var_s2, path_var_s2), (p95_s, path_p95_s)):
            np.copyto(worst, path, where=worse)
    amounts = np.zeros((len(rows), features.slots))
    for column, slot in enumerate(features.slot_of):
        amounts[:, slot] += coefficients.work[:, column] * totals[:, column]
    return Evaluation(
        latency_mean_s=mean_s,
        latency_var_s2=var_s2,
        latency_p95_s=p95_s,
        cost_usd=np.einsum("it,it->i", coefficients.cost_usd, totals),
        amounts=amounts,
    )


def serves(features: Features, coefficients: Coefficients, members: Indices, block: int) -> NDArray[np.bool_]:
    """Which templates of a block meet an instance's whole SLO and fit alone, ``(templates, members)``.

    ``p95 <= limit`` is decided without a root: the mean must leave some slack, and the slack's square must
    hold the variance.
    """
    blocks = features.blocks
    rows = slice(blocks.starts[block], blocks.ends[block])
    served = features.accuracy[rows, np.newaxis] >= coefficients.accuracy.take(members)
    mean_s, var_s2 = coefficients.mean_s.take(members, axis=0).T, coefficients.var_s2.take(members, axis=0).T
    limit_s = coefficients.latency_p95_s.take(members)
    for means, spreads in zip(features.means, features.spreads, strict=True):
        slack_s = limit_s - means[rows] @ mean_s
        served &= slack_s >= 0
        np.multiply(slack_s, slack_s, out=slack_s)
        served &= slack_s >= spreads[rows] @ var_s2
    totals, high = features.totals[rows], blocks.high_totals[block]
    cost_usd, limit_usd = coefficients.cost_usd.take(members, axis=0), coefficients.max_cost_usd.take(members)
    if (cost_usd @ high > (1 - _ROUNDING) * limit_usd).any():
        served &= totals @ cost_usd.T <= limit_usd
    work, room = coefficients.work.take(members, axis=0), coefficients.room.take(members, axis=0)
    most = (work * high) @ (features.slot_of[:, np.newaxis] == np.arange(features.slots))
    for slot in np.flatnonzero((most > (1 - _ROUNDING) * room).any(axis=0)):
        columns = np.flatnonzero(features.slot_of == slot)
        served &= totals[:, columns] @ work[:, columns].T <= room[:, slot]
    return np.asarray(served)


def _amount(features: Features, coefficients: Coefficients, rows: Indices | slice, slot: int) -> Floats:
    columns = np.flatnonzero(features.slot_of == slot)
    return np.asarray(coefficients.work[:, columns] @ features.totals[rows][:, columns].T)
