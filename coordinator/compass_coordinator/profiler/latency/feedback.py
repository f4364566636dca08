"""What operators take while they serve updates what their profiles say, and what was long ago fades.

**One variant.** Its profile counts as ``PRIOR_WEIGHT`` runs, each window of serving as the runs in it, at
most ``WINDOW_WEIGHT``: runs of one minute share the machine's state and say less than as many independent
ones. A run of age a weighs 2^(-a / H) with half-life H, and

    mean = sum_i w_i m_i / sum_i w_i        var = sum_i w_i (v_i + (m_i - mean)²) / sum_i w_i

over profile and windows i with means m_i and variances v_i; kept as one weight and two moments each for the
profile and for serving (West's update, all weights multiplied by 2^(-dt / H) in between). Sizes go the same
way; p95 is the same mean of the windows' p95s, which is their quantile where the windows are alike.

Why this one: it is a weighted sum, so late windows and any order do no harm; it has one parameter that means
something (seconds); it says how sure it is (``var / sum_i w_i``); and it asks for no model of how machines
drift. All weights fade alike, so time alone moves nothing. In steady serving 2^(-T / H) of a shift is left
after T; the sum of weights is capped at ``MAX_WEIGHT`` runs, so at most (1 + c / MAX_WEIGHT)^-k is left after
k windows of c runs each, however busy it was before. A window beyond a factor ``FURTHEST`` of what is
believed counts as that far: a machine that slept in a run says nothing of the next, one that is ten times
slower says it again.

**Bias.** What agents report is an operator's own time, without waiting, on a machine that is serving: caches
and memory are shared as they will be. Only assigned variants are seen; what those of one speed class drifted
in common is applied to the others (``drift``). Figures that were measured after a drift have it in them: each
variant remembers what its class had drifted when it was measured again.

References:
    West, "Updating mean and variance estimates: an improved method" (1979).
    Ljung, Söderström, "Theory and Practice of Recursive Identification" (1983), section 2.6 (forgetting).
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

from compass_coordinator.profiler.latency.drift import Drift, Seen, common_drift, operators_of_class
from compass_shared.messages import ServedMessage
from compass_shared.problem import Z95
from compass_shared.profile import OperatorProfile, SiteProfile

HALF_LIFE_S = 300.0
PRIOR_WEIGHT = 20.0
WINDOW_WEIGHT = 50.0
MAX_WEIGHT = 200.0
ENOUGH = 5.0
"""Runs that make a figure of a variant that was never measured otherwise, or of its class's drift."""
FURTHEST = 8.0
MOVED = 0.1
"""Plans are made again when a time or a size has moved by this share since the last planning ..."""
MOVED_ERRORS = 3.0
"""... and by this many of its standard errors."""
SIZED = 1 / 16
"""Share of the runs whose outputs agents look at."""
_Z_TWO_SIDED = 1.96

_Key = tuple[str, str]
"""Pipeline and variant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Figures, and how many runs they count as."""

    weight: float
    figures: OperatorProfile

    def times(self, factor: float) -> Evidence:
        """The same figures, counting for less."""
        return replace(self, weight=factor * self.weight)


def mixed(one: Evidence, two: Evidence) -> Evidence:
    """Both together: weighted moments; what is not measured stays the first one's."""
    weight = one.weight + two.weight
    share = two.weight / weight if weight > 0 else 0.5
    a, b = one.figures, two.figures
    mean_s, var_s2 = _moments(share, (a.mean_s, a.var_s2), (b.mean_s, b.var_s2))
    size, size_var = _moments(
        share, (a.output_mean_bytes, a.output_var_bytes2), (b.output_mean_bytes, b.output_var_bytes2)
    )
    figures = replace(
        a,
        mean_s=mean_s,
        var_s2=var_s2,
        p95_s=a.p95_s + share * (b.p95_s - a.p95_s),
        output_mean_bytes=size,
        output_var_bytes2=size_var,
        **_items(share, a, b, mean_s),
    )
    return Evidence(weight=weight, figures=figures)


def _items(share: float, a: OperatorProfile, b: OperatorProfile, mean_s: float) -> dict[str, Any]:
    """Items of both together; the time of one is never more than the mean time leaves for it."""
    if a.items_mean is None or b.items_mean is None:
        found = a if b.items_mean is None else b
        mean, var = found.items_mean, found.items_var
    else:
        mean, var = _moments(share, (a.items_mean, a.items_var), (b.items_mean, b.items_var))
    item_s = a.item_s + share * (b.item_s - a.item_s) if a.item_s and b.item_s else a.item_s or b.item_s
    return {"items_mean": mean, "items_var": var, "item_s": min(item_s, mean_s / mean) if mean else item_s}


def _moments(share: float, one: tuple[float, float], two: tuple[float, float]) -> tuple[float, float]:
    """Mean and variance of a mixture that has ``share`` of the second."""
    gap = two[0] - one[0]
    return one[0] + share * gap, (1 - share) * one[1] + share * two[1] + share * (1 - share) * gap * gap


@dataclass(slots=True, kw_only=True)
class _Track:
    """What is believed of one variant at one site."""

    at_s: float
    """When the weights were right."""
    prior: Evidence | None
    """From the profile; None for a variant that was never measured there."""
    served: Evidence | None = None
    last: OperatorProfile | None = None
    """Latest window: the same again, much sooner than a window takes, is a message delivered twice."""
    planned: OperatorProfile | None = None
    """What the last planning was told."""

    def believed(self) -> Evidence | None:
        """Profile and serving together."""
        if self.prior is None or self.served is None:
            return self.prior or self.served
        return mixed(self.prior, self.served)

    def weigh(self, factor: float) -> None:
        """Multiply all weights."""
        self.prior = self.prior and self.prior.times(factor)
        self.served = self.served and self.served.times(factor)

    def fade(self, now_s: float, half_life_s: float) -> None:
        """Bring the weights up to a time."""
        if now_s > self.at_s:
            self.weigh(0.5 ** ((now_s - self.at_s) / half_life_s))
            self.at_s = now_s

    def take(self, window: OperatorProfile) -> None:
        """Add a window of serving at the time that the weights are right for."""
        self.last = window
        before = self.believed()
        seen = Evidence(weight=min(float(window.count), WINDOW_WEIGHT), figures=_within(window, before))
        self.served = seen if self.served is None else mixed(self.served, seen)
        total = self.served.weight + (0.0 if self.prior is None else self.prior.weight)
        if total > MAX_WEIGHT:
            self.weigh(MAX_WEIGHT / total)

    def figures(self) -> OperatorProfile | None:
        """What to plan with, None while there is too little to go by."""
        found = self.believed()
        if found is None or (self.prior is None and found.weight < ENOUGH):
            return None
        if self.served is None:
            return found.figures
        off_s = _Z_TWO_SIDED * math.sqrt(found.figures.var_s2 / found.weight)
        mean_s = found.figures.mean_s
        return replace(
            found.figures,
            count=max(1, round(found.weight)),
            mean_interval_s=(max(0.0, mean_s - off_s), mean_s + off_s),
            p95_interval_s=None,
        )

    def moved(self) -> bool:
        """Whether what is believed is clearly not what the last planning was told."""
        now, told = self.figures(), self.planned
        if now is None or told is None or self.served is None:
            return now is not told
        runs = self.served.weight
        return _differ(_time(now), _time(told), runs) or _differ(
            _size(now), _size(told), max(1.0, SIZED * runs)
        )


def _time(found: OperatorProfile) -> tuple[float, float]:
    return found.mean_s, found.var_s2


def _size(found: OperatorProfile) -> tuple[float, float]:
    return found.output_mean_bytes, found.output_var_bytes2


def _differ(now: tuple[float, float], told: tuple[float, float], runs: float) -> bool:
    """Whether a mean, or the mean and its spread that make a p95, moved beyond what few runs may."""
    error = MOVED_ERRORS * math.sqrt(now[1] / runs)
    high_now, high_told = (mean + Z95 * math.sqrt(var) for mean, var in (now, told))
    return any(
        abs(new - old) > max(MOVED * old, error) for new, old in ((now[0], told[0]), (high_now, high_told))
    )


def _within(window: OperatorProfile, believed: Evidence | None) -> OperatorProfile:
    """The window, at most ``FURTHEST`` times as long or short as what is believed."""
    if believed is None or believed.figures.mean_s <= 0:
        return window
    ratio = window.mean_s / believed.figures.mean_s
    if 1 / FURTHEST <= ratio <= FURTHEST:
        return window
    return window.scaled(min(max(ratio, 1 / FURTHEST), FURTHEST) / ratio, 0.0)


@dataclass(slots=True)
class _SiteTracks:
    """What is believed of one site."""

    session: int
    tracks: dict[_Key, _Track] = field(default_factory=dict)
    measured_at: dict[_Key, float] = field(default_factory=dict)
    """What its class had drifted when a variant was measured again, as a logarithm; 0 if it never was."""

    def drifts(self) -> dict[str, Drift]:
        """Speed class -> what it drifted in common."""
        seen: dict[str, list[Seen]] = defaultdict(list)
        for key, track in self.tracks.items():
            if track.prior is None or track.served is None or track.served.weight < ENOUGH:
                continue
            now, then = track.served.figures, track.prior.figures
            if min(now.mean_s, then.mean_s) > 0:
                noise = now.var_s2 / now.mean_s**2 / track.served.weight
                noise += then.var_s2 / then.mean_s**2 / max(then.count, 1)
                ratio = math.log(now.mean_s / then.mean_s) + self.measured_at.get(key, 0.0)
                seen[then.speed_class].append(Seen(log_ratio=ratio, var=noise))
        found = {name: common_drift(several) for name, several in seen.items()}
        return {name: drift for name, drift in found.items() if drift is not None}


class Feedback:
    """Evidence from serving, of all sites.

    Args:
        half_life_s: Age at which a run counts half.
    """

    def __init__(self, *, half_life_s: float = HALF_LIFE_S) -> None:
        self._half_life_s = half_life_s
        self._sites: dict[str, _SiteTracks] = {}

    def take_profile(self, session: int, old: SiteProfile | None, new: SiteProfile, now_s: float) -> None:
        """A site was measured: fresh figures take the place of what its profile said before.

        Args:
            session: Of the agent; a new one is a new start, and nothing served before counts any more.
            old: Its profile so far.
            new: Its profile now; figures that are the same were not measured again.
            now_s: Monotonic seconds.
        """
        site = self._of(new.site, session)
        if site is None or old is None:
            return
        drifts = site.drifts()
        for variant, figures in new.operators.items():
            if old.operators.get(variant) == figures:
                continue
            key = new.pipeline, variant
            drift = drifts.get(figures.speed_class)
            site.measured_at[key] = 0.0 if drift is None else drift.log_ratio
            if (track := site.tracks.get(key)) is not None:
                track.fade(now_s, self._half_life_s)
                track.prior = Evidence(weight=PRIOR_WEIGHT, figures=figures)

    def take_served(
        self, site_name: str, message: ServedMessage, profile: SiteProfile | None, now_s: float
    ) -> bool:
        """A window of serving, its numbers checked.

        Args:
            site_name: Whose.
            message: What it says.
            profile: What was measured there; None if nothing was.
            now_s: Monotonic seconds.

        Returns:
            Whether plans should be made again.
        """
        site = self._of(site_name, message.session)
        if site is None:
            return False
        moved = False
        for variant, window in message.operators.items():
            key = message.pipeline, variant
            if key not in site.tracks:
                site.tracks[key] = _new_track(profile.measured(variant) if profile else None, now_s)
            track = site.tracks[key]
            if track.last == window and now_s - track.at_s < message.over_s / 2:
                continue
            track.fade(now_s, self._half_life_s)
            track.take(window)
            moved = track.moved() or moved
        return moved

    def applied(self, profile: SiteProfile) -> SiteProfile:
        """A profile as things stand, to plan with; from now on movement counts from here."""
        site = self._sites.get(profile.site)
        if site is None or not site.tracks:
            return profile
        drifts = site.drifts()
        classes = operators_of_class(profile.operators)
        operators: dict[str, OperatorProfile] = {}
        for variant in profile.operators:
            found = profile.measured(variant)
            assert found is not None
            drift = drifts.get(found.speed_class)
            if drift is not None:
                since = site.measured_at.get((profile.pipeline, variant), 0.0)
                found = drift.applied(found, since=since, operators=classes[found.speed_class])
            operators[variant] = found
        for (pipeline, variant), track in site.tracks.items():
            if pipeline == profile.pipeline:
                track.planned = track.figures()
                if track.planned is not None and track.served is not None:
                    operators[variant] = track.planned
        return replace(profile, operators=operators, slowdowns={}, overhead_s=0.0)

    def _of(self, site: str, session: int) -> _SiteTracks | None:
        """State of a site in a session, None if that is over."""
        known = self._sites.get(site)
        if known is None or session > known.session:
            known = self._sites[site] = _SiteTracks(session=session)
        return known if session == known.session else None


def _new_track(measured: OperatorProfile | None, now_s: float) -> _Track:
    prior = None if measured is None else Evidence(weight=PRIOR_WEIGHT, figures=measured)
    return _Track(at_s=now_s, prior=prior, planned=measured)
