"""Placement constraints, checked again by who would have to break them, whatever the coordinator planned."""

from __future__ import annotations

from collections.abc import Collection

from compass_shared.pipeline import Operator, Pipeline
from compass_shared.plan import Plan
from compass_shared.site import Tier

_OURS = frozenset({"device", "origin"})
"""Who must run on one of these alone is kept from others."""


class Places:
    """Where an agent lets the operators of its queries run.

    An operator that is bound to devices or its origin does not leave an origin that it may run at, not even
    for another device. Any other that is bound may go where a tier is known and allowed, or is not known yet:
    a worker checks its own, see ``serving_problem``.

    Args:
        site: The agent's own site.
        tier: Its tier.
    """

    def __init__(self, site: str, tier: Tier) -> None:
        self._site = site
        self.tiers = {site: tier}
        """Site -> tier, of those that are known."""

    def problem(self, pipeline: Pipeline, plan: Plan) -> str | None:
        """Which operator a plan puts where it must not run, or None."""
        for operator in pipeline.operators:
            site = plan.placement[operator.name]
            if not self._may_run(operator, site):
                return _misplaced(operator, site)
        return None

    def serving_problem(self, pipeline: Pipeline, operators: Collection[str]) -> str | None:
        """Which of these operators must not run here for a query of another origin, or None."""
        tier = self.tiers[self._site].value
        for operator in pipeline.operators:
            if operator.name in operators and operator.must_run_on and tier not in operator.must_run_on:
                return _misplaced(operator, self._site)
        return None

    def _may_run(self, operator: Operator, site: str) -> bool:
        places = frozenset(operator.must_run_on)
        here = not places or "origin" in places or self.tiers[self._site].value in places
        if site == self._site:
            return here
        if here and places and places <= _OURS:
            return False
        tier = self.tiers.get(site)
        return not places or (bool(places - {"origin"}) if tier is None else tier.value in places)


def _misplaced(operator: Operator, site: str) -> str:
    places = " or ".join(operator.must_run_on)
    return f"operator {operator.name!r} is placed at {site!r}, but must run on {places}"
