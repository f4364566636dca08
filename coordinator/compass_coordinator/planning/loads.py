"""Loads that plans are assumed to meet before it is known who is served."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compass_coordinator.planning.settling import Spaces
from compass_shared.problem import Problem, SiteLoad
from compass_shared.queueing import SiteMix


def loads_at_cap(problem: Problem, spaces: Spaces, mix: Mapping[str, SiteMix]) -> dict[str, SiteLoad]:
    """Every site as busy as its cap allows, with the residual of the mix that it is likely to see."""
    residuals_s = {
        site: brought.load(problem.sites[site].cores).residual_s
        for site, brought in mix.items()
        if brought.busy_cores > 0
    }
    return {
        name: SiteLoad(
            utilisation=site.utilisation_cap,
            residual_s=residuals_s[name] if name in residuals_s else _typical_residual_s(spaces, name),
        )
        for name, site in problem.sites.items()
    }


def _typical_residual_s(spaces: Spaces, site: str) -> float:
    """Residual at a site that nobody uses yet: the rate-weighted median over the plans that could."""
    weights, medians = [0.0], [0.0]
    for query, space in spaces.values():
        if site in space.sites:
            at = space.sites.index(site)
            visiting = space.busy_s[at] > 0
            if visiting.any():
                residual_s = space.second_moment_s2[at, visiting] / (2 * space.busy_s[at, visiting])
                weights.append(query.rate_hz)
                medians.append(float(np.median(residual_s)))
    total = sum(weights)
    return float(np.dot(weights, medians)) / total if total > 0 else 0.0
