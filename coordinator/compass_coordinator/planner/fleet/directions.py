"""Directions in which candidates are looked for: what if this class of resources were dear?

Plans that are best at some prices are the ones that a matcher, whatever is scarce, can want. Resources fall
into classes: cores of devices, edge servers and cloud pools, and links to each. A price of 1 makes the
average plan's use of a class as dear as its cost in dollars.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.fleet.coefficients import coefficients_of
from compass_coordinator.planner.fleet.pricing import Directions
from compass_coordinator.planner.fleet.tables import TIERS

if TYPE_CHECKING:
    from compass_coordinator.planner.fleet.space import FleetSpace

_DEVICE, _EDGE, _CLOUD, _TO_DEVICE, _TO_EDGE, _TO_CLOUD = range(2 * len(TIERS))
_DEAR, _FAIR = 30.0, 1.0
_SAMPLE = 256
_TIE_BREAK = 1e-6

_WAYS: tuple[Mapping[int, float], ...] = (
    {},
    {_EDGE: _DEAR, _CLOUD: _DEAR, _TO_EDGE: _DEAR, _TO_CLOUD: _DEAR},
    {_DEVICE: _DEAR},
    {_DEVICE: _DEAR, _EDGE: _DEAR},
    {_DEVICE: _DEAR, _CLOUD: _DEAR},
    {_EDGE: _DEAR, _CLOUD: _DEAR},
    {_DEVICE: _FAIR},
    {_EDGE: _DEAR, _TO_EDGE: _DEAR},
    {_CLOUD: _DEAR, _TO_CLOUD: _DEAR},
    {_TO_EDGE: _DEAR, _TO_CLOUD: _DEAR},
    {_EDGE: _FAIR},
)


def diverse(space: FleetSpace) -> Directions:
    """The cheapest plan, and plans that spare classes of resources; over one remote site at most."""
    classes = _classes(space)
    scales = _scales(space, classes)
    ways = [(scales * _by_class(way))[classes] for way in _WAYS]
    return Directions(cost_weight=np.ones(len(ways)), prices=np.stack(ways), deep=0)


def cheapest_and_at(space: FleetSpace, prices: Floats) -> Directions:
    """Two directions: the cheapest plan, and the best at given prices, the cost to choose among equals."""
    return Directions(
        cost_weight=np.array([1.0, _tie_break(space, prices)]),
        prices=np.stack([np.zeros(len(prices)), prices]),
        deep=2,
    )


def priced(space: FleetSpace, prices: Floats) -> Directions:
    """Two directions: the price of demand alone, and with the cost to choose among equals."""
    return Directions(
        cost_weight=np.array([0.0, _tie_break(space, prices)]), prices=np.stack([prices, prices]), deep=2
    )


def _tie_break(space: FleetSpace, prices: Floats) -> float:
    """A weight of cost at which it decides among plans whose demand is worth about the same."""
    worth, cost_usd = 0.0, 0.0
    for resources, amounts, costs_usd in _samples(space):
        worth += float((amounts * prices[resources]).sum())
        cost_usd += float(costs_usd.sum())
    return _TIE_BREAK * worth / cost_usd if worth > 0 and cost_usd > 0 else 1.0


def _classes(space: FleetSpace) -> Indices:
    """(resources,) class of each."""
    sites, links = space.tables.sites, space.problem.links
    order = dict(zip(sites.names, sites.tier.tolist(), strict=True))
    # Links of a site that is gone belong to no instance.
    farther = [len(TIERS) + max(order.get(one, 0), order.get(two, 0)) for one, two in links]
    return np.array([*order.values(), *farther], dtype=np.int64)


def _by_class(way: Mapping[int, float]) -> Floats:
    return np.array([way.get(number, 0.0) for number in range(2 * len(TIERS))])


def _scales(space: FleetSpace, classes: Indices) -> Floats:
    """(classes,) price at which the average use of a class costs as much as the average plan."""
    count = 2 * len(TIERS)
    uses, users, costs = np.zeros(count), np.zeros(count), [np.zeros(1)]
    for resources, amounts, cost_usd in _samples(space):
        sampled = classes[resources].ravel()
        uses += np.bincount(sampled, weights=amounts.ravel(), minlength=count)
        users += np.bincount(sampled, minlength=count)
        costs.append(cost_usd)
    mean_usd = float(np.concatenate(costs).mean()) or 1.0
    return np.divide(mean_usd * users, uses, out=np.ones(count), where=uses > 0)


def _samples(space: FleetSpace) -> Iterator[tuple[Indices, Floats, Floats]]:
    """Of some instances of each group: resources and mean amounts by slot, mean cost."""
    for group, features in zip(space.groups, space.features, strict=True):
        if len(features) and len(group):
            some = group.take(slice(None, None, -(-len(group) // _SAMPLE)))
            made = coefficients_of(space.tables, some, features)
            totals = features.totals.mean(axis=0)
            amounts = np.zeros((len(some), features.slots))
            for column, slot in enumerate(features.slot_of):
                amounts[:, slot] += made.work[:, column] * totals[column]
            yield made.resources, amounts, made.cost_usd @ totals
