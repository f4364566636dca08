"""How long a segment waits for a core: load of a site, and the wait that a visit meets there.

Several queries share a site. Each of its visits brings work with a mean and a spread; summed over visits at
their rates that is a ``SiteMix``. A mix on so many cores is a ``SiteLoad``; a load gives a ``Wait``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from compass_shared.problem import SiteLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteMix:
    """What all visits to one site bring together, per second."""

    busy_cores: float = 0.0
    """Sum of rate x E[S] over the segments S that visit the site."""
    second_moment_s: float = 0.0
    """Sum of rate x E[S^2], in seconds squared per second."""

    def load(self, cores: float) -> SiteLoad:
        """The load that a visit meets when this mix runs on so many cores."""
        if self.busy_cores <= 0:
            return SiteLoad(utilisation=0.0, residual_s=0.0)
        return SiteLoad(
            utilisation=self.busy_cores / cores, residual_s=self.second_moment_s / (2 * self.busy_cores)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Time between the arrival of a segment at a site and its start."""

    mean_s: float
    var_s2: float


def total_mix(mixes: Iterable[SiteMix]) -> SiteMix:
    """Several mixes at one site as one."""
    listed = tuple(mixes)
    return SiteMix(
        busy_cores=math.fsum(mix.busy_cores for mix in listed),
        second_moment_s=math.fsum(mix.second_moment_s for mix in listed),
    )


def wait_at(load: SiteLoad, cores: float) -> Wait:
    """Wait of one visit to a site, by Sakasegawa's approximation of M/G/k.

    With ``k = max(1, floor(cores))`` and utilisation ``rho`` the mean is
    ``rho^(sqrt(2(k+1))-1) / (k (1-rho)) * residual_s`` (exact for k = 1: Pollaczek-Khinchine), and the
    variance ``mean^2 (2 / rho - 1)``, that of an exponential wait met by a share ``rho`` of the visits.

    Args:
        load: What keeps the site busy.
        cores: Its physical cores.

    Returns:
        Mean and variance; infinite when the site cannot keep up (utilisation of 1 or more).

    Source: H. Sakasegawa, An approximation formula Lq = alpha rho^beta / (1 - rho), 1977.
    """
    rho = load.utilisation
    if rho <= 0:
        return Wait(mean_s=0.0, var_s2=0.0)
    if rho >= 1:
        return Wait(mean_s=math.inf, var_s2=math.inf)
    servers = max(1, math.floor(cores))
    busy = rho ** (math.sqrt(2 * (servers + 1)) - 1)
    mean_s = busy / (servers * (1 - rho)) * load.residual_s
    return Wait(mean_s=mean_s, var_s2=mean_s**2 * (2 / rho - 1))
