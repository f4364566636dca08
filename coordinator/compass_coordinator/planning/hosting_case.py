"""What hosting is asked, and estimates at given prices of what a change of the hosted items would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.matcher import REFUSED
from compass_coordinator.matcher.problem import Floats

Hosted: TypeAlias = NDArray[np.bool_]

_COST_WEIGHT = 1e-6
"""Of the largest value: what the largest cost counts, so that cost decides between equals only."""
_LOOKED_AT = 24
"""Changes for which room is made, of all that promise something."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Items:
    """Variants at sites; one variant at two sites is two items."""

    site: NDArray[np.int64]
    """(items,) index of the site."""
    memory_bytes: Floats
    """(items,) >= 0."""
    hosted: Hosted
    """(items,) whether it is there now."""
    loading: Floats
    """(items,) >= 0, the value that loading it costs; nothing for what is there."""
    site_memory_bytes: Floats
    """(sites,) >= 0, may be infinite."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostingCase:
    """Queries, their plans, and the items that these use."""

    values: Floats
    """(queries, plans)."""
    demands: Floats
    """(queries, plans, resources)."""
    capacities: Floats
    """(resources,)."""
    costs: Floats
    """(queries, plans)."""
    uses: NDArray[np.int64]
    """(queries, plans, width) no item twice in a plan, -1 fills up."""
    items: Items

    def offered(self, hosted: Hosted) -> Floats:
        """(queries, plans) values of the plans over what is hosted, -inf for the others."""
        return np.where(self._missing(hosted).any(axis=2), -np.inf, self.values)

    def used_by(self, choice: NDArray[np.int64]) -> Hosted:
        """(items,) what the chosen plans use."""
        served = np.flatnonzero(choice != REFUSED)
        used = np.zeros(len(self.items.site) + 1, dtype=bool)
        used[self.uses[served, choice[served]]] = True
        return used[:-1]

    def reduced(self, prices: Floats) -> Floats:
        """(queries, plans) value that a plan leaves at these prices."""
        reduced = np.where(self.values > 0, self.values - self.demands @ prices, -np.inf)
        costs = np.where(self.values > 0, self.costs, 0.0)
        dearest = float(np.abs(costs).max(initial=0.0))
        if dearest > 0:
            reduced = reduced - costs * (_COST_WEIGHT * float(self.values.max(initial=0.0)) / dearest)
        return reduced

    def fitted(self, hosted: Hosted, reduced: Floats, keep: Hosted | None = None) -> Hosted:
        """What is hosted less what has the least loss per byte, until it fits; ``keep`` stays if it can."""
        items, hosted = self.items, hosted.copy()
        while True:
            needed = np.bincount(
                items.site, weights=items.memory_bytes * hosted, minlength=len(items.site_memory_bytes)
            )
            over = hosted & (needed > items.site_memory_bytes)[items.site] & (items.memory_bytes > 0)
            if not over.any():
                return hosted
            if keep is not None:
                # A site whose kept items alone exceed its memory has to give up some of them.
                optional = np.bincount(items.site, weights=over & ~keep, minlength=len(needed)) > 0
                over &= ~(keep & optional[items.site])
            score = self._worth(hosted, reduced)[over] / items.memory_bytes[over]
            candidates = np.flatnonzero(over)[np.argsort(score, kind="stable")]
            _, first = np.unique(items.site[candidates], return_index=True)
            hosted[candidates[first]] = False

    def changes(self, hosted: Hosted, reduced: Floats) -> list[Hosted]:
        """What might be hosted instead, the most promising first.

        The first is all promising changes together that touch sites of their own, if there are several.
        """
        worth = self._worth(hosted, reduced)
        found: list[tuple[float, Hosted]] = []
        for promise, adding, dropping in self._offers(hosted, reduced, worth)[:_LOOKED_AT]:
            changed = self.fitted((hosted | adding) & ~dropping, reduced, adding)
            if changed[adding].all():
                dropped = hosted & ~changed & ~dropping
                found.append((promise - float(worth[dropped].sum()), changed))
        found.sort(key=lambda one: -one[0])
        together, touched = hosted.copy(), np.zeros(len(self.items.site_memory_bytes), dtype=bool)
        joined = 0
        for promise, changed in found:
            sites = self.items.site[changed != hosted]
            if promise > 0 and not touched[sites].any():
                together = np.where(changed != hosted, changed, together)
                touched[sites] = True
                joined += 1
        return [*([together] if joined > 1 else []), *(changed for _, changed in found)]

    def _offers(self, hosted: Hosted, reduced: Floats, worth: Floats) -> list[tuple[float, Hosted, Hosted]]:
        """What it promises to add a set of items or to drop one: (value, added, dropped), most first."""
        items, nothing = self.items, np.zeros_like(hosted)
        offers = []
        for lacked, gain in zip(*self._lacking(hosted, reduced), strict=True):
            adding = nothing.copy()
            adding[lacked[lacked >= 0]] = True
            offers.append((float(gain - items.loading[adding & ~items.hosted].sum()), adding, nothing))
        for item in np.flatnonzero(hosted & ~items.hosted & (worth < 0)).tolist():
            dropping = nothing.copy()
            dropping[item] = True
            offers.append((-float(worth[item]), nothing, dropping))
        return sorted(offers, key=lambda offer: -offer[0])

    def _missing(self, hosted: Hosted) -> Hosted:
        """(queries, plans, width) whether an item that a plan uses is not hosted."""
        # An index of -1 reads the last entry: where nothing is used, nothing is missing.
        missing: Hosted = ~np.append(hosted, True)[self.uses]
        return missing

    def _worth(self, hosted: Hosted, reduced: Floats) -> Floats:
        """(items,) what queries lose without one of the hosted items, less the loading that this saves."""
        worth = -np.where(hosted & ~self.items.hosted, self.items.loading, 0.0)
        if not reduced.size:
            return worth
        queries = np.arange(len(reduced))
        offered = np.where(self._missing(hosted).any(axis=2), -np.inf, reduced)
        plan = offered.argmax(axis=1)
        most = np.maximum(offered[queries, plan], 0.0)
        for item in self.uses[queries, plan].T:
            without = np.where((self.uses == item[:, np.newaxis, np.newaxis]).any(axis=2), -np.inf, offered)
            lost = most - np.maximum(without.max(axis=1), 0.0)
            uses = item >= 0
            worth += np.bincount(item[uses], weights=lost[uses], minlength=len(worth))
        return worth

    def _lacking(self, hosted: Hosted, reduced: Floats) -> tuple[NDArray[np.int64], Floats]:
        """(sets, width) sets of items that plans lack, -1 fills up, and (sets,) what queries would gain."""
        missing = self._missing(hosted)
        lacking = missing.any(axis=2)
        most = np.where(lacking, -np.inf, reduced).max(axis=1, initial=0.0)
        gain = reduced - most[:, np.newaxis]
        query, plan = np.nonzero(lacking & (gain > 0))
        if not query.size:
            return np.zeros((0, self.uses.shape[2]), dtype=np.int64), np.zeros(0)
        lacked = np.sort(np.where(missing, self.uses, -1)[query, plan], axis=1)
        sets, which = np.unique(lacked, axis=0, return_inverse=True)
        which = which.reshape(-1)
        # Of the plans of one query that lack the same set, the best one counts.
        order = np.lexsort((gain[query, plan], query, which))
        last = np.append((np.diff(which[order]) != 0) | (np.diff(query[order]) != 0), True)
        best = order[last]
        gains = np.bincount(which[best], weights=gain[query, plan][best], minlength=len(sets))
        return sets, gains.astype(np.float64)
