"""What to measure next: what is likeliest to change a query's choice, per second of profiling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from compass_coordinator.profiler.selective.decisions import Decisions, Stakes
from compass_coordinator.profiler.selective.operator_times import OperatorTimes
from compass_coordinator.profiler.selective.score_model import Belief
from compass_coordinator.profiler.selective.space import Floats, Indices, Space

BLOCK = 60
"""Inputs that are worth a decision; fewer at a time were measured to serve worse, whatever they promise."""
CANDIDATES = 30
"""Configs whose worth is worked out."""
GAPS = 200
"""Thresholds near a config that its worth is averaged over."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Measure a config on the first so many inputs of the common order."""

    config: int
    upto: int
    price_s: float
    """Expected operator-seconds."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prices:
    """What measuring costs, in operator-seconds.

    Operator results are kept, so a config pays for its nodes only on inputs where no other config did. Some
    of these turn out to be there all the same, since equal values are read as one: ``ran`` says how many of
    the runs that were paid for really ran.
    """

    space: Space
    node_s: Floats
    """(nodes,) of one run."""
    node_seen: Indices
    """(nodes,) inputs from the start of the order for which the result is there; all 0 without reuse."""

    @staticmethod
    def of(
        space: Space,
        seen: Indices,
        times: OperatorTimes,
        *,
        reuse: bool,
        ran: Floats,
        requests: float = 1.0,
    ) -> Prices:
        """Prices as things stand.

        Args:
            space: The configs.
            seen: (configs,) inputs measured.
            times: Of operators; those that never ran are taken to be as slow as the slowest.
            reuse: Whether results are shared.
            ran: (variants,) share of the expected runs that were needed.
            requests: Of an input, on average.
        """
        slowest = float(np.nanmax(times.mean_s)) if np.isfinite(times.mean_s).any() else 1.0
        each_s = requests * np.where(np.isfinite(times.mean_s), times.mean_s * ran, slowest)
        node_s = each_s[space.node_variant]
        node_seen = np.zeros(len(node_s), dtype=np.intp)
        if reuse:
            np.maximum.at(node_seen, space.nodes, seen[:, np.newaxis])
        return Prices(space=space, node_s=node_s, node_seen=node_seen)

    def price(self, config: int, start: int, upto: int) -> float:
        """Of measuring a config on the inputs from ``start`` to ``upto``."""
        nodes = self.space.nodes[config]
        return float(self.node_s[nodes] @ np.maximum(0, upto - np.maximum(self.node_seen[nodes], start)))


def next_actions(
    decisions: Decisions,
    belief: Belief,
    found: Stakes,
    seen: Indices,
    prices: Prices,
    *,
    inputs: int,
    partly: bool,
) -> list[Action]:
    """The configs, and how much of each, whose scores would set most choices right per second, best first.

    Measuring a config takes away its own blame, and of others' blame what their correlation with it explains.
    How much of its own goes with a part of the inputs follows from how far its accuracy is from the
    thresholds around it: close by the first inputs tell most, far away only most of them turn a choice.

    Args:
        decisions: Queries.
        belief: Of accuracies.
        found: What is at stake.
        seen: (configs,) inputs measured.
        prices: Of measuring.
        inputs: Size of the input set.
        partly: Whether a config may stop before the end of the set.

    Returns:
        Nothing if nothing is at stake, or all that could be measured was.
    """
    open_ = np.flatnonzero(seen < inputs)
    explained = _explained(belief, open_)
    worth = explained @ found.blame[open_]
    found_actions = []
    for at in np.argsort(-worth, kind="stable")[:CANDIDATES]:
        config, start = int(open_[at]), int(seen[open_[at]])
        own, others = found.blame[config], worth[at] - found.blame[config]
        if not worth[at] > 0:
            break
        gaps = _gaps(decisions, belief, found, config)
        best, most = None, 0.0
        for upto in _extents(start, inputs) if partly else (inputs,):
            left = _left(belief, config, start, upto, inputs)
            gain = own * (1 - _still_wrong(gaps, left)) + others * (1 - left)
            price_s = prices.price(config, start, upto)
            merit = gain / max(price_s, 1e-9)
            if merit > most:
                best, most = Action(config=config, upto=upto, price_s=price_s), merit
        if best is not None:
            found_actions.append((most, best))
    return [action for _, action in sorted(found_actions, key=lambda pair: -pair[0])]


def _extents(start: int, inputs: int) -> tuple[int, ...]:
    return tuple(sorted({min(inputs, start + BLOCK), inputs}))


def _left(belief: Belief, config: int, start: int, upto: int, inputs: int) -> float:
    """Share of the standard deviation of an accuracy that measuring on more inputs leaves.

    The mean over all inputs left is a common part, which the first of them tell most of, and their own parts,
    which average out. What the mean of the first m of R explains of it is
    (common + own / R) / (common + own / m).
    """
    rest, more = inputs - start, upto - start
    own = float(belief.next_var[config])
    variance = float(belief.spread[config] * inputs / rest) ** 2
    common = max(0.0, variance - own / rest)
    explained = (common + own / rest) / max(common + own / more, 1e-300)
    return math.sqrt(max(0.0, 1 - explained))


def _explained(belief: Belief, open_: Indices) -> Floats:
    """(open, open) share of the standard deviation of one accuracy that knowing another takes away."""
    spread = np.maximum(belief.spread[open_], 1e-12)
    correlation = belief.covariance[np.ix_(open_, open_)] / np.outer(spread, spread)
    shares = 1 - np.sqrt(np.clip(1 - correlation**2, 0.0, 1.0))
    np.fill_diagonal(shares, 1.0)
    return np.asarray(shares)


def _gaps(decisions: Decisions, belief: Belief, found: Stakes, config: int) -> Floats:
    """Distances, in standard deviations, to the thresholds of queries it would be the answer to."""
    paid = np.where(
        found.chosen >= 0, decisions.costs[np.arange(len(decisions)), found.chosen], np.finfo(np.float64).max
    )
    gaps = np.abs(belief.mean[config] - decisions.needed[decisions.costs[:, config] <= paid])
    nearest = np.sort(gaps / max(float(belief.spread[config]), 1e-12))
    return np.asarray(nearest[:GAPS])


def _still_wrong(gaps: Floats, left: float) -> float:
    """Share of the chance to be on the wrong side of thresholds that is left with ``left`` of the spread.

    The chance that the sign of an accuracy's distance z + x to a threshold, x standard normal, differs from
    the sign of what is known of it once ``left`` of the standard deviation is not:
    E[Phi(-|z + sqrt(1 - left^2) x| / left)].
    """
    before = norm.cdf(-gaps)
    if left <= 0 or not before.sum() > 1e-300:
        return 0.0 if left <= 0 else left
    shifted = np.abs(gaps[:, np.newaxis] + np.sqrt(max(0.0, 1 - left**2)) * _NODES) / left
    after = norm.cdf(-shifted) @ _WEIGHTS / _WEIGHTS.sum()
    return float(min(1.0, after.sum() / before.sum()))
