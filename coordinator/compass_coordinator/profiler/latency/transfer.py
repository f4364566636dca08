"""Latency on a new device from a handful of probes: what the others take, and how sure that is.

``choose_probes`` names the variants that teach most, ``fit_speed`` compares their times with those of a site
where everything was measured, and ``completed`` fills a site's profile up. Means come from a regression over
speed classes (``slowdowns``), spreads and p95 from the inputs' spread at the reference and what the device
adds to it (``tails``). Predicted figures have a count of 0.

>>> from compass_shared.profile import OperatorProfile, SiteProfile
>>> def timed(variant, mean_s):
...     return OperatorProfile(
...         variant=variant, mean_s=mean_s, var_s2=(0.1 * mean_s) ** 2, p95_s=1.2 * mean_s, count=50,
...         output_mean_bytes=100.0, speed_class="onnx-fp32",
...     )
>>> operators = {"small": timed("small", 0.01), "medium": timed("medium", 0.03), "large": timed("large", 0.1)}
>>> here = SiteProfile(site="here", pipeline="p", digest="", operators=operators, request_mean_bytes=1.0)
>>> speed = fit_speed(here, {"small": timed("small", 0.04), "large": timed("large", 0.4)})
>>> round(speed.forecast("medium").mean_s, 2)
0.12
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from compass_coordinator.profiler.latency.device_fit import Forecast, class_slowdown, fit_device, kinship_of
from compass_coordinator.profiler.latency.drift import operators_of_class
from compass_coordinator.profiler.latency.slowdowns import Variants, next_probe
from compass_shared.errors import ProfileError
from compass_shared.pipeline import Pipeline, variant_key
from compass_shared.profile import OperatorProfile, SiteProfile

DEFAULT = "default"
"""Key of a prior for the speed classes that it does not list."""
BROAD_SD = 1.0
"""Of the logarithm of a slowdown that nothing is known of: within a factor of 2.7, more likely than not."""
PROBE_REPEATS = 30
PROBE_SETUP_S = 3.0
"""What a probe costs beside its repeats: fetching and opening a model, warming it up."""
_DESIGN = (0.5, 0.2, 0.2, 0.1, 0.05)
"""For choosing probes: sd of what a device's classes share, of a class, of kin, of the slope, of its own."""
_BRIEF = 0.01
"""Variants that take less than this share of the longest one's time matter in proportion to it."""
_DISTURBED_S = 0.01
"""Square of the error of a mean, times the seconds behind it: a few calls meet some disturbances, or none."""
_MOST_DISTURBED = 0.05
"""And never more than this: what stops short calls at all stands out."""

Prior = Mapping[str, tuple[float, float]]
"""Speed class -> (slowdown, its relative standard deviation)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What is believed of a device's speed after some probes."""

    slowdowns: Mapping[str, tuple[float, float]]
    """Speed class -> (time relative to the reference, its relative standard deviation)."""
    overhead_s: float
    """Constant time of every call, part of the forecasts."""
    residual_rel_sd: float
    """How far variants of one class lie apart."""
    forecasts: Mapping[str, Forecast]
    """Every variant of the reference."""
    reference: Mapping[str, OperatorProfile]
    operators_of_class: Mapping[str, int]
    """Speed class -> operators of the pipeline that have variants in it."""

    def forecast(self, variant: str) -> Forecast:
        """What a variant takes, and how sure that is.

        Raises:
            ProfileError: If the reference does not know it.
        """
        if variant not in self.forecasts:
            raise ProfileError(f"the reference has no measurement of {variant!r} to predict from")
        return self.forecasts[variant]

    def predict(self, variant: str) -> OperatorProfile:
        """The forecast as a profile entry with a count of 0, its uncertainty made part of the variance.

        Errors that the n operators of a class have in common add up along a path; each entry takes n times
        its own share, which by Cauchy-Schwarz covers the square of their sum.
        """
        found = self.forecast(variant)
        there = self.reference[variant]
        operators = self.operators_of_class[there.speed_class]
        own_rel_var = max(0.0, found.mean_rel_sd**2 - found.shared_rel_var)
        uncertain = own_rel_var + operators * found.shared_rel_var
        return replace(
            there,
            mean_s=found.mean_s,
            var_s2=found.var_s2 + found.mean_s**2 * uncertain,
            p95_s=found.p95_s,
            count=0,
            item_s=there.item_s * found.mean_s / there.mean_s,
            mean_interval_s=_interval(found.mean_s, found.mean_rel_sd),
            p95_interval_s=_interval(found.p95_s, found.p95_rel_sd),
        )


def fit_speed(
    reference: SiteProfile, probes: Mapping[str, OperatorProfile], prior: Prior | None = None
) -> Speed:
    """Learn how a device compares with the reference.

    Args:
        reference: A site where every variant was measured.
        probes: Variant -> what was measured on the device; may be empty.
        prior: What is known of the device beforehand, ``default`` for classes that are not listed.

    Raises:
        ProfileError: If a figure is not a positive time, or a probe is of a variant that the reference lacks.
    """
    there = {key: _checked(found) for key in reference.operators if (found := reference.measured(key))}
    if unknown := sorted(set(probes) - set(there)):
        raise ProfileError(f"the reference {reference.site!r} has no measurement of {unknown[0]!r}")
    here = {key: _checked(probes[key]) for key in there if key in probes}
    classes = sorted({found.speed_class for found in there.values()})
    variants = _variants(there, classes, prior or {})
    order = {key: index for index, key in enumerate(there)}
    probed = np.array([order[key] for key in here], int)
    fitted = fit_device(variants, probed, list(here.values()), list(there.values()))
    forecasts = {key: fitted.forecast(at) for key, at in order.items()}
    return Speed(
        slowdowns={name: class_slowdown(fitted, variants, at) for at, name in enumerate(classes)},
        overhead_s=fitted.overhead_s,
        residual_rel_sd=fitted.own_sd,
        forecasts=forecasts,
        reference=there,
        operators_of_class=operators_of_class(there),
    )


def site_speed(
    pipeline: Pipeline, reference: SiteProfile, partial: SiteProfile, prior: Prior | None = None
) -> Speed:
    """Learn how a site compares with a reference, from what was measured there.

    Args:
        pipeline: Gives the variants, and speed classes where the profiles have none.
        reference: A site where every variant was measured.
        partial: The site, with some of them; none is allowed.
        prior: What is known of the device beforehand.

    Raises:
        ProfileError: If a profile is of another pipeline, the reference is incomplete, or a figure is wrong.
    """
    for profile in (reference, partial):
        if (profile.pipeline, profile.digest) != (pipeline.name, pipeline.digest):
            raise ProfileError(
                f"the profile of {profile.site!r} is of another pipeline than {pipeline.name!r} now: "
                "measure it again"
            )
    classes = _classes(pipeline)
    known = _with_classes(reference, classes)
    if missing := [key for key in classes if key not in known.operators]:
        raise ProfileError(f"the reference {reference.site!r} has no measurement of {missing[0]!r}")
    return fit_speed(known, _own(pipeline, partial), prior)


def completed(
    pipeline: Pipeline,
    reference: SiteProfile,
    partial: SiteProfile,
    prior: Prior | None = None,
    *,
    speed: Speed | None = None,
) -> SiteProfile:
    """A site's profile with every variant: measured where it was, else predicted.

    Args:
        pipeline: As of ``site_speed``, like all the others.
        reference: A site where every variant was measured.
        partial: The site, with some of them; none is allowed.
        prior: What is known of the device beforehand.
        speed: What ``site_speed`` says of these, if it was asked already.

    Raises:
        ProfileError: As ``site_speed`` does.
    """
    known = speed or site_speed(pipeline, reference, partial, prior)
    own = _own(pipeline, partial)
    operators = {key: own.get(key) or known.predict(key) for key in _classes(pipeline)}
    return replace(partial, operators=operators, slowdowns={}, overhead_s=0.0)


def _own(pipeline: Pipeline, partial: SiteProfile) -> dict[str, OperatorProfile]:
    """What was measured at a site, by variant."""
    measured = _with_classes(partial, _classes(pipeline)).operators
    return {key: found for key, found in measured.items() if found.count > 0}


def choose_probes(pipeline: Pipeline, reference: SiteProfile, count: int = 5) -> tuple[str, ...]:
    """The variants whose measurement on a new device teaches most about the others, per second.

    One after the other: each is the one that takes the most variance away, summed over all variants, for what
    it costs to measure.

    Args:
        pipeline: Gives the variants.
        reference: A site where they were measured.
        count: How many; fewer where the pipeline has fewer variants.

    Raises:
        ProfileError: If a figure of the reference is not a positive time.
    """
    return most_telling(_with_classes(reference, _classes(pipeline)).operators, count)


def most_telling(operators: Mapping[str, OperatorProfile], count: int = 5) -> tuple[str, ...]:
    """``choose_probes`` among any measured variants."""
    there = [_checked(found) for found in operators.values()]
    reference_s = np.array([found.mean_s for found in there])
    names = np.array([found.speed_class for found in there])
    common_sd, class_sd, kin_sd, slope_sd, own_sd = _DESIGN
    slope_of = np.log(reference_s) - np.mean(np.log(reference_s))
    covariance = (
        common_sd**2
        + class_sd**2 * (names[:, np.newaxis] == names)
        + kin_sd**2 * kinship_of(list(operators))
        + slope_sd**2 * np.outer(slope_of, slope_of)
    )
    matters = reference_s / (reference_s + _BRIEF * reference_s.max(initial=0.0))
    worth = np.array([matters, PROBE_SETUP_S + PROBE_REPEATS * reference_s])
    noise_var = own_sd**2 + np.minimum(_DISTURBED_S / (PROBE_REPEATS * reference_s), _MOST_DISTURBED)
    chosen: list[int] = []
    while len(chosen) < min(count, len(there)):
        chosen.append(next_probe(covariance, noise_var, chosen, worth))
    keys = list(operators)
    return tuple(keys[at] for at in chosen)


def _classes(pipeline: Pipeline) -> dict[str, str]:
    """Variant -> speed class of its operator."""
    return {
        variant_key(op.name, knobs): op.speed_class for op in pipeline.operators for knobs in op.variants()
    }


def _with_classes(profile: SiteProfile, classes: Mapping[str, str]) -> SiteProfile:
    """The profile with figures as measured at the site, of the pipeline's variants, each with a class."""
    operators = {
        key: found if found.speed_class else replace(found, speed_class=name)
        for key, name in classes.items()
        if (found := profile.measured(key))
    }
    return replace(profile, operators=operators, slowdowns={}, overhead_s=0.0)


def _checked(found: OperatorProfile) -> OperatorProfile:
    figures = (found.mean_s, found.p95_s, found.var_s2)
    if not all(map(math.isfinite, figures)) or min(found.mean_s, found.p95_s) <= 0 or found.var_s2 < 0:
        raise ProfileError(
            f"{found.variant}: mean {found.mean_s} s, p95 {found.p95_s} s and variance {found.var_s2} s² "
            "are not what a measurement gives: measure it again"
        )
    return found


def _interval(value_s: float, rel_sd: float) -> tuple[float, float]:
    """Where a forecast lies with 95% confidence: it is lognormal."""
    off = math.exp(1.96 * rel_sd)
    return value_s / off, value_s * off


def _variants(there: Mapping[str, OperatorProfile], classes: list[str], prior: Prior) -> Variants:
    expected = [prior.get(found.speed_class, prior.get(DEFAULT)) for found in there.values()]
    for given in expected:
        if given is not None and not (0 < given[0] < math.inf and 0 <= given[1] < math.inf):
            raise ProfileError(f"a slowdown of {given[0]} with relative sd {given[1]} is no prior")
    return Variants(
        reference_s=np.array([found.mean_s for found in there.values()]),
        speed_class=np.array([classes.index(found.speed_class) for found in there.values()], int),
        prior_log=np.array([0.0 if given is None else math.log(given[0]) for given in expected]),
        prior_sd=np.array([BROAD_SD if given is None else given[1] for given in expected]),
        kinship=kinship_of(list(there)),
    )
