"""Sites where only some variants were measured: the others are predicted, or what is missing is said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from compass_coordinator.profiler.latency.transfer import DEFAULT, Prior, choose_probes, completed, site_speed
from compass_shared.device_profile import DeviceProfile
from compass_shared.errors import ProfileError
from compass_shared.pipeline import Pipeline, variant_key
from compass_shared.problem import Problem
from compass_shared.profile import OperatorProfile, SiteProfile

FIGURE_REL_SD = 0.3
"""Of a device profile's slowdown that states no uncertainty: another device of the kind, another model."""
PROBES = 5
"""Variants to ask for where there is nothing to predict from."""
ALIKE = 0.02
"""Measured times that moved by less than this share predict what they did."""
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is not measured of one variant."""

    rel_sd: float
    """Uncertainty of its mean time, as standard deviation of its logarithm."""
    var_s2: float
    """Its spread from call to call alone; the profile's has the uncertainty in it as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What there is to fill a site's profile up from."""

    reference: SiteProfile | None
    """A profile of the pipeline with every variant, if any site has one."""
    prior: Prior | None = None
    """What is known of the device beforehand."""
    hopeless: frozenset[str] = frozenset()
    """Variants that the site failed to measure: it cannot run them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """Why a site's profile is not enough to plan with."""

    reason: str
    wanted: tuple[str, ...] = ()
    """What to measure first, where there is a reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One site's profile of one pipeline with what it did not measure."""

    profile: SiteProfile
    predicted: Mapping[str, Prediction] = field(default_factory=dict)
    """Variants of the profile that were not measured there."""


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


def lack_of(pipeline: Pipeline, partial: SiteProfile, gap: Gap) -> Lack | None:
    """Why a site cannot be planned with; None if what it measured can be filled up, or has to do.

    With a reference one measured variant will do, or a prior; without, some variant of every operator.
    """
    missing = missing_of(pipeline, partial)
    if gap.reference is None:
        if all(
            any(variant_key(op.name, knobs) not in missing for knobs in op.variants())
            for op in pipeline.operators
        ):
            return None
        nothing = ", and no site measured all of them to predict from"
        return Lack(reason=_lacking(pipeline, partial, missing) + nothing)
    if gap.prior is not None or len(missing) < len(variants_of(pipeline)):
        return None
    chosen = choose_probes(pipeline, gap.reference, PROBES)
    teaching = [key for key in chosen if key in missing and key not in gap.hopeless]
    return Lack(reason=_lacking(pipeline, partial, missing), wanted=tuple(teaching))


def complete(pipeline: Pipeline, partial: SiteProfile, gap: Gap) -> Completion:
    """Predict what was not measured at a site; where nothing can be, its profile is what was measured."""
    missing = missing_of(pipeline, partial)
    if not missing or gap.reference is None:
        return Completion(profile=partial)
    try:
        speed = site_speed(pipeline, gap.reference, partial, gap.prior)
        profile = completed(pipeline, gap.reference, partial, gap.prior, speed=speed)
    except ProfileError:  # figures that no measurement gives: nothing follows from them
        return Completion(profile=partial)
    able = [key for key in missing if key not in gap.hopeless]
    forecasts = {key: speed.forecast(key) for key in able}
    return Completion(
        profile=_filled(partial, {key: profile.operators[key] for key in able}),
        predicted={
            key: Prediction(rel_sd=found.mean_rel_sd, var_s2=found.var_s2) for key, found in forecasts.items()
        },
    )


def _filled(partial: SiteProfile, predicted: Mapping[str, OperatorProfile]) -> SiteProfile:
    """What was measured at a site, and predictions."""
    own = {key: there for key in partial.operators if (there := partial.measured(key)) and there.count > 0}
    return replace(partial, operators={**own, **predicted}, slowdowns={}, overhead_s=0.0)


class Completions:
    """Predictions that are kept from one planning to the next: they take a site's worth of grid each."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[SiteProfile, Gap, Completion]] = {}

    def fill(
        self, problem: Problem, gaps: Mapping[tuple[str, str], Gap]
    ) -> tuple[Problem, dict[tuple[str, str], Mapping[str, Prediction]]]:
        """The problem with every profile filled up.

        Args:
            problem: Profiles hold what was measured.
            gaps: (Site, pipeline) of those that did not measure all.

        Returns:
            The problem, and what of its profiles is predicted.
        """
        self._known = {key: found for key, found in self._known.items() if key in gaps}
        profiles, predicted = dict(problem.profiles), {}
        for key in gaps.keys() & profiles.keys():
            found = self._of(problem.pipelines[key[1]], profiles[key], gaps[key])
            profiles[key] = found.profile
            if found.predicted:
                predicted[key] = found.predicted
        return (replace(problem, profiles=profiles) if gaps else problem), predicted

    def _of(self, pipeline: Pipeline, partial: SiteProfile, gap: Gap) -> Completion:
        key = partial.site, pipeline.name
        known = self._known.get(key)
        if known is not None and known[1] == gap and _alike(known[0], partial):
            predicted = {name: known[2].profile.operators[name] for name in known[2].predicted}
            return replace(known[2], profile=_filled(partial, predicted) if predicted else partial)
        found = complete(pipeline, partial, gap)
        self._known[key] = partial, gap, found
        return found


def _alike(one: SiteProfile, other: SiteProfile) -> bool:
    """Whether two measurements of a site lead to much the same predictions."""
    return one.operators.keys() == other.operators.keys() and all(
        abs(found.mean_s - other.operators[key].mean_s) <= ALIKE * found.mean_s
        for key, found in one.operators.items()
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
