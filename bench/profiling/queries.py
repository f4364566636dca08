"""The decision problem of the bench: random queries of random devices, each with a best config.

Devices are draws around the repository's device profiles: a phone, a Jetson or a laptop, with an edge server
near by (three in five), and the cloud. SLOs are drawn so that all three of them matter:

* latency is log-uniform from what is enough for a third of the configs to a fifth more than for all but 2%,
* accuracy is one less an error rate that is log-uniform over ``ERROR``,
* cost is log-uniform from what is enough for half of the configs in time to three times the dearest.

Prices of a device are draws as well: a joule costs one to ``WEAR`` times what the mains ask (batteries wear),
and a gigabyte sent 0.01 to 1 USD.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.random import Generator

from compass_coordinator.estimator import Floats
from compass_shared.device_profile import DeviceProfile, LinkFigures, find_device_profile
from compass_shared.query import Query, Slo
from compass_shared.site import Link, Prices, Site
from profiling.plans import DEVICE, REMOTE, Figures, Plans, Priced, Wish
from profiling.times import true_figures
from profiling.truth import Truth

EDGE, CLOUD = REMOTE
ERROR = (0.03, 0.6)
EDGE_SHARE = 0.6
CLASS_SPREAD = 0.3
WEAR = 40.0
EGRESS_BYTE_USD = (1e-11, 1e-9)
KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "phone-midrange": ("wifi", ("lte", "broadband")),
    "jetson-orin-nano": ("ethernet", ("broadband",)),
    "laptop": ("wifi", ("broadband",)),
}
"""Device profile -> its link to an edge server, and those to the cloud."""
CLASSES = ("default", "python", "onnx-fp32")
"""Speed classes that are drawn: a profile that comes to know more, accelerators say, changes no query."""
BANDWIDTH_REL_SD = 0.2
RTT_REL_SD = 0.3
UNLIMITED = Slo(latency_p95_s=math.inf, accuracy=0.0, cost_usd_per_1000=math.inf)
TOLERANCE = 0.01
"""A choice that costs so much more than the best counts as right."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decisions:
    """Queries, and which choices are right by the truth."""

    truth: Truth
    plans: Plans
    needed: Floats
    """(Q,) accuracy."""

    def cost_matrix(self, figures: Figures) -> Floats:
        """(Q, C) least cost of a config over placements in time and budget, by these figures; else inf."""
        return self.plans.priced(figures).cost

    @cached_property
    def figures(self) -> Figures:
        """The true ones."""
        return true_figures(self.truth)

    @cached_property
    def priced(self) -> Priced:
        """By the true figures."""
        return self.plans.priced(self.figures)

    @cached_property
    def best_cost(self) -> Floats:
        """(Q,) of the best config; inf where no config serves."""
        return np.asarray(self._serving.min(axis=1))

    @property
    def feasible(self) -> np.ndarray:
        """(Q,) bool."""
        return np.isfinite(self.best_cost)

    @cached_property
    def _serving(self) -> Floats:
        accurate = self.truth.accuracy >= self.needed[:, np.newaxis]
        return np.where(accurate, self.priced.cost, np.inf)

    @property
    def best(self) -> np.ndarray:
        """(Q,) config that the truth would choose; any where none serves."""
        return np.asarray(self._serving.argmin(axis=1))

    def spread(self) -> dict[str, float]:
        """How much there is to decide."""
        counts = np.bincount(self.best[self.feasible])
        right = self._serving <= (1 + TOLERANCE) * self.best_cost[:, np.newaxis]
        constant = (right & self.feasible[:, np.newaxis]).sum(axis=0) + 0
        return {
            "queries": len(self.needed),
            "feasible_share": float(self.feasible.mean()),
            "distinct_best": int((counts > 0).sum()),
            "largest_share": float(counts.max() / counts.sum()),
            "best_constant_choice": float(constant.max() / self.feasible.sum()),
        }


def in_steps(decisions: Decisions, step: float) -> Decisions:
    """The same queries as people would write them: accuracies in round figures.

    Args:
        decisions: Queries with any accuracy.
        step: What the accuracies become multiples of.
    """
    return replace(decisions, needed=np.round(np.round(decisions.needed / step) * step, 9))


def make_decisions(truth: Truth, queries: int, seed: int = 0) -> Decisions:
    """Draw queries.

    Args:
        truth: Gives what configs take, between which SLOs are drawn.
        queries: How many.
        seed: The same seed always gives the same queries.
    """
    rng = np.random.default_rng([seed, queries])
    kinds = {name: find_device_profile(name) for name in (*KINDS, "edge-nuc", "cloud-vcpu")}
    sizes = np.array([info.size_bytes for info in truth.inputs], np.float64)
    request_bytes = float(sizes.mean()), float(sizes.var())
    wishes = [_wish(rng, kinds, truth.pipeline.name, at) for at in range(queries)]
    open_plans = Plans(pipeline=truth.pipeline, wishes=tuple(wishes), request_bytes=request_bytes)
    needed = 1 - np.exp(rng.uniform(math.log(ERROR[0]), math.log(ERROR[1]), size=queries))
    limited: list[Wish] = []
    for rows, cost_usd, p95_s in open_plans.unlimited(true_figures(truth)):
        for at, row in enumerate(rows):
            slo = _slo(rng, cost_usd[at], p95_s[at], float(needed[row]))
            limited.append(replace(wishes[row], query=replace(wishes[row].query, slo=slo)))
    plans = Plans(pipeline=truth.pipeline, wishes=tuple(limited), request_bytes=request_bytes)
    return Decisions(truth=truth, plans=plans, needed=needed)


def _slo(rng: Generator, cost_usd: Floats, p95_s: Floats, accuracy: float) -> Slo:
    low_s, high_s = np.quantile(p95_s.min(axis=0), (0.33, 0.98))
    latency_s = _log_uniform(rng, low_s, 1.2 * high_s)
    in_time = np.where(p95_s <= latency_s, cost_usd, np.inf).min(axis=0)
    known = in_time[np.isfinite(in_time)]
    return Slo(
        latency_p95_s=latency_s,
        accuracy=accuracy,
        cost_usd_per_1000=_log_uniform(rng, np.quantile(known, 0.5), 3 * known.max()),
    )


def _wish(rng: Generator, kinds: Mapping[str, DeviceProfile], pipeline: str, at: int) -> Wish:
    name = str(rng.choice(list(KINDS)))
    near, far = KINDS[name]
    remote = {CLOUD: (kinds["cloud-vcpu"], kinds[name].links[str(rng.choice(far))])}
    if rng.random() < EDGE_SHARE:
        remote[EDGE] = kinds["edge-nuc"], kinds[name].links[near]
    device = _site(DEVICE, kinds[name])
    prices = Prices(
        energy_j_usd=device.prices.energy_j_usd * _log_uniform(rng, 1.0, WEAR),
        egress_byte_usd=_log_uniform(rng, *EGRESS_BYTE_USD),
    )
    sites = {DEVICE: replace(device, prices=prices)}
    slowdowns = {DEVICE: _slowdowns(rng, kinds[name], 0.8)}
    links: dict[tuple[str, str], Link] = {}
    for site, (profile, figures) in sorted(remote.items()):
        sites[site] = _site(site, profile)
        slowdowns[site] = _slowdowns(rng, profile, 0.15)
        links |= _links(rng, site, figures)
    query = Query(name=f"query-{at}", origin=DEVICE, pipeline=pipeline, rate_hz=1.0, slo=UNLIMITED)
    return Wish(query=query, sites=sites, links=links, slowdowns=slowdowns)


def _site(name: str, profile: DeviceProfile) -> Site:
    return Site(
        name=name,
        tier=profile.tier,
        cores=profile.cores.value,
        prices=profile.prices(),
        power_w=profile.power_w.value,
    )


def _slowdowns(rng: Generator, profile: DeviceProfile, spread: float) -> dict[str, float]:
    """All classes of a machine are faster or slower together, and each a little on its own."""
    common = spread * rng.standard_normal()
    return {
        name: profile.slowdowns()[name] * math.exp(common + CLASS_SPREAD * rng.standard_normal())
        for name in CLASSES
    }


def _links(rng: Generator, site: str, figures: LinkFigures) -> dict[tuple[str, str], Link]:
    rtt_s = figures.rtt_s.value * math.exp(0.5 * rng.standard_normal())
    faster = math.exp(1.0 * rng.standard_normal())
    ways = {(DEVICE, site): figures.up_bps.value, (site, DEVICE): figures.down_bps.value}
    return {
        way: Link(
            source=way[0],
            target=way[1],
            rtt_s=rtt_s,
            rtt_var_s2=(RTT_REL_SD * rtt_s) ** 2,
            bandwidth_bps=faster * bytes_s,
            bandwidth_rel_sd=BANDWIDTH_REL_SD,
        )
        for way, bytes_s in ways.items()
    }


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))
