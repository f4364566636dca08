"""Fits a device to what was probed of it: means by regression, spreads by jitter and stalls, together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compass_coordinator.profiler.latency.slowdowns import Floats, Indices, Regression, Variants, normalised
from compass_coordinator.profiler.latency.tails import Spread, Stalls, fit_tails, spread_of, stalls
from compass_shared.profile import OperatorProfile

_UNLIKELY = 2e-3
"""What is less likely than this is not looked at any further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One variant's time on the device."""

    mean_s: float
    mean_rel_sd: float
    """Uncertainty of the mean, as standard deviation of its logarithm."""
    p95_s: float
    p95_rel_sd: float
    var_s2: float
    """Spread from call to call, without the uncertainty."""
    shared_rel_var: float
    """Part of the mean's uncertainty that other variants of its class have as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Means and spreads of all v variants, what stops the device weighed over."""

    log_s: Floats
    shared_var: Floats
    own_var: Floats
    rel_var: Floats
    log_ratio: Floats
    """Of p95 / mean."""
    ratio_var: Floats
    overhead_s: float
    own_sd: float

    def forecast(self, at: int) -> Forecast:
        """Of one variant."""
        mean_s, mean_var = math.exp(self.log_s[at]), self.shared_var[at] + self.own_var[at]
        return Forecast(
            mean_s=mean_s,
            mean_rel_sd=math.sqrt(mean_var),
            p95_s=mean_s * math.exp(self.log_ratio[at]),
            p95_rel_sd=math.sqrt(mean_var + self.ratio_var[at]),
            var_s2=float(mean_s**2 * self.rel_var[at]),
            shared_rel_var=float(self.shared_var[at]),
        )


def fit_device(
    variants: Variants,
    probed: Indices,
    here: Sequence[OperatorProfile],
    there: Sequence[OperatorProfile],
) -> Fitted:
    """Means and spreads together: whether a device stalls says how far few calls can be trusted."""
    candidates = stalls()
    inputs, measured = _spread_of(there), _spread_of(here)
    count = np.array([max(found.count, 1) for found in here], float)
    noise = [_rel_error(found) + _rel_error(there[at]) for found, at in zip(here, probed, strict=True)]
    regression = Regression(
        variants, probed, measured.mean_s, candidates.sampling_var(measured.mean_s, count) + np.array(noise)
    )
    at_probes = regression.predict(probed, np.arange(len(candidates.share)))
    spreads = fit_tails(_take(inputs, probed), measured, count, np.exp(at_probes.log_s))
    believed = normalised(spreads + regression.evidence + np.log(candidates.weights))
    likely = np.flatnonzero(believed.sum(axis=0) > _UNLIKELY)
    believed = believed[:, likely] / believed[:, likely].sum()
    weights = believed.sum(axis=0)
    slowdowns = regression.predict(np.arange(len(there)), likely)
    log_s = weights @ slowdowns.log_s
    assumed = Stalls(share=candidates.share[likely], period_s=candidates.period_s[likely], weights=weights)
    rel_var, log_ratio, ratio_var = spread_of(inputs, np.exp(slowdowns.log_s), believed, assumed)
    return Fitted(
        log_s=log_s,
        shared_var=weights @ (slowdowns.shared_var + (slowdowns.log_s - log_s) ** 2),
        own_var=weights @ slowdowns.own_var,
        rel_var=rel_var,
        log_ratio=log_ratio,
        ratio_var=ratio_var,
        overhead_s=float(weights @ slowdowns.overhead_s),
        own_sd=float(weights @ slowdowns.own_sd),
    )


def class_slowdown(found: Fitted, variants: Variants, at: int) -> tuple[float, float]:
    """Slowdown of a class's middle variant, and the relative uncertainty that the class shares."""
    members = variants.speed_class == at
    ratio = found.log_s[members] - np.log(variants.reference_s[members])
    return float(np.exp(np.median(ratio))), float(np.sqrt(np.median(found.shared_var[members])))


def kinship_of(keys: Sequence[str]) -> Floats:
    """Who does alike: half for the same operator, all for the same words among its knob values as well.

    Words choose what is run (a model, whether at all), numbers how much work it is given.
    """
    parts = [key.rstrip("]").partition("[") for key in keys]
    operators = np.array([operator for operator, _, _ in parts])
    words = np.array(
        [",".join(knob for knob in knobs.split(",") if not _numeric(knob)) for _, _, knobs in parts]
    )
    same = operators[:, np.newaxis] == operators
    kinship: Floats = 0.5 * same + 0.5 * (same & (words[:, np.newaxis] == words))
    return kinship


def _numeric(knob: str) -> bool:
    try:
        float(knob.partition("=")[2])
    except ValueError:
        return False
    return True


def _spread_of(found: Sequence[OperatorProfile]) -> Spread:
    return Spread(
        mean_s=np.array([entry.mean_s for entry in found]),
        var_s2=np.array([entry.var_s2 for entry in found]),
        p95_s=np.array([entry.p95_s for entry in found]),
    )


def _take(spread: Spread, rows: Indices) -> Spread:
    return Spread(mean_s=spread.mean_s[rows], var_s2=spread.var_s2[rows], p95_s=spread.p95_s[rows])


def _rel_error(found: OperatorProfile) -> float:
    """Relative variance of a measured mean."""
    return found.var_s2 / found.mean_s**2 / max(found.count, 1)
