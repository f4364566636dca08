"""Sites where only some variants were measured: the others are predicted, or what is missing is said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from compass_coordinator.profiler.transfer import DEFAULT, Prior, choose_probes, completed, site_speed
from compass_shared.device_profile import DeviceProfile
from compass_shared.errors import ProfileError
from compass_shared.pipeline import Pipeline, variant_key
from compass_shared.profile import SiteProfile

FIGURE_REL_SD = 0.3
"""Of a device profile's slowdown that states no uncertainty: another device of the kind, another model."""
PROBES = 5
"""Variants to ask for where there is nothing to predict from."""
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is not measured of one variant."""

    rel_sd: float
    """Uncertainty of its mean time, as standard deviation of its logarithm."""
    var_s2: float
    """Its spread from call to call alone; the profile's has the uncertainty in it as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One site's profile of one pipeline, made fit for planning."""

    profile: SiteProfile | None = None
    """None: there is too little to plan with."""
    predicted: Mapping[str, Prediction] = field(default_factory=dict)
    """Variants of the profile that were not measured there."""
    lacking: str = ""
    """What is missing, if there is too little."""
    wanted: tuple[str, ...] = ()
    """What to measure first, then."""


def reference_of(pipeline: Pipeline, profiles: Iterable[SiteProfile]) -> SiteProfile | None:
    """The profile to predict others from: the complete one with the most measured runs.

    Args:
        pipeline: Whose variants.
        profiles: Of that pipeline, of any site.
    """
    complete = [profile for profile in profiles if not missing_of(pipeline, profile)]
    return max(complete, key=lambda found: (_runs(found), found.site), default=None)


def missing_of(pipeline: Pipeline, profile: SiteProfile) -> tuple[str, ...]:
    """Variants that were not measured, in file order."""
    found = profile.operators
    return tuple(key for key in variants_of(pipeline) if key not in found or found[key].count == 0)


def complete(
    pipeline: Pipeline,
    partial: SiteProfile,
    reference: SiteProfile | None,
    *,
    prior: Prior | None = None,
    hopeless: frozenset[str] = frozenset(),
) -> Completion:
    """Predict what was not measured at a site.

    Args:
        pipeline: Whose variants.
        partial: What was measured.
        reference: A profile to predict from, if any site has one.
        prior: What is known of the device beforehand.
        hopeless: Variants that the site failed to measure: it cannot run them.
    """
    missing = missing_of(pipeline, partial)
    if not missing:
        return Completion(profile=partial)
    wanted = tuple(key for key in missing if key not in hopeless)
    if reference is None:
        return _as_it_is(pipeline, partial, missing, wanted)
    try:
        if len(missing) == len(variants_of(pipeline)) and prior is None:
            teaching = [key for key in choose_probes(pipeline, reference, PROBES) if key in wanted]
            return Completion(lacking=_lacking(pipeline, partial, missing), wanted=tuple(teaching))
        speed = site_speed(pipeline, reference, partial, prior)
        profile = completed(pipeline, reference, partial, prior, speed=speed)
    except ProfileError as error:
        return Completion(lacking=str(error))
    forecasts = {key: speed.forecast(key) for key in wanted}
    return Completion(
        profile=_without(profile, hopeless & set(missing)),
        predicted={
            key: Prediction(rel_sd=found.mean_rel_sd, var_s2=found.var_s2) for key, found in forecasts.items()
        },
    )


def _as_it_is(
    pipeline: Pipeline, partial: SiteProfile, missing: Sequence[str], wanted: tuple[str, ...]
) -> Completion:
    """With nothing to predict from, what was measured has to do: some variant of every operator."""
    lacking = _lacking(pipeline, partial, missing) + ", and no site measured all of them to predict from"
    whole = all(
        any(variant_key(op.name, knobs) not in missing for knobs in op.variants())
        for op in pipeline.operators
    )
    return Completion(
        profile=partial if whole else None, lacking="" if whole else lacking, wanted=() if whole else wanted
    )


def prior_of(device: DeviceProfile | None, reference: DeviceProfile | None) -> Prior | None:
    """What device profiles say of a device's speed, relative to that of the reference.

    Args:
        device: Of the site; None: nothing is known.
        reference: Of the site that is predicted from; None: about as fast as the reference core.
    """
    if device is None:
        return None
    classes = set(device.slowdown) | set(reference.slowdown if reference else ())
    return {name: _ratio(device, reference, name) for name in classes}


def _ratio(device: DeviceProfile, reference: DeviceProfile | None, name: str) -> tuple[float, float]:
    here, here_sd = _slowdown(device, name)
    there, there_sd = (1.0, FIGURE_REL_SD) if reference is None else _slowdown(reference, name)
    return here / there, math.hypot(here_sd, there_sd)


def _slowdown(device: DeviceProfile, name: str) -> tuple[float, float]:
    figure = device.slowdown.get(name, device.slowdown[DEFAULT])
    return figure.value, FIGURE_REL_SD if figure.rel_sd is None else figure.rel_sd


def variants_of(pipeline: Pipeline) -> tuple[str, ...]:
    """Keys of all variants, in file order."""
    return tuple(variant_key(op.name, knobs) for op in pipeline.operators for knobs in op.variants())


def _runs(profile: SiteProfile) -> int:
    return sum(found.count for found in profile.operators.values())


def _lacking(pipeline: Pipeline, partial: SiteProfile, missing: Sequence[str]) -> str:
    total = len(variants_of(pipeline))
    named = ", ".join(missing[:_MOST_NAMED]) + (", ..." if len(missing) > _MOST_NAMED else "")
    done = f"{total - len(missing)} of {total} variants of {pipeline.name!r}"
    return f"{partial.site!r} measured {done}, not {named}"


def _without(profile: SiteProfile, gone: frozenset[str]) -> SiteProfile:
    operators = {key: found for key, found in profile.operators.items() if key not in gone}
    return replace(profile, operators=operators) if gone else profile
