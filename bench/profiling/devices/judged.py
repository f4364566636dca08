"""How well what was not probed is predicted, beside three simpler ways."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compass_coordinator.profiler.latency.transfer import fit_speed, most_telling
from compass_shared.profile import OperatorProfile, SiteProfile
from profiling.devices.measured import Measured

PROBES = 5
AIM = 0.15
DRAWS = 12
"""Random sets of as many probes."""
Z90 = 1.6448536269514722

Profiles = Mapping[str, OperatorProfile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One target."""

    target: str
    skipped: str | None = None
    probes: tuple[str, ...] = ()
    p95_errors: Mapping[str, float] | None = None
    """Unseen variant -> relative error of its predicted p95."""
    mean_errors: Mapping[str, float] | None = None
    covered: float = 0.0
    """Share of the unseen whose p95 lies in its own 90% interval."""
    width: float = 0.0
    """Median relative half width of that interval."""
    any_probes: float = 0.0
    """Median error of the p95 where the probes are drawn at random."""
    common: float = 0.0
    """Median error where everything slows down by what the probes do on average."""
    nearest: float = 0.0
    """Where each slows down as the probe of the nearest duration in its class does."""
    prior: float = 0.0
    """Where nothing is probed."""
    noise: float = 0.0
    """Median relative error of the measured p95 itself: half of what two halves of the rounds differ by."""

    @property
    def p95(self) -> float:
        """Median absolute relative error of the p95 of what was not probed."""
        return _median((self.p95_errors or {}).values())

    @property
    def mean(self) -> float:
        """And of the mean."""
        return _median((self.mean_errors or {}).values())


def judge(measured: Sequence[Measured], draws: int = DRAWS) -> list[Row]:
    """One row per target.

    Args:
        measured: The reference first.
        draws: Random sets of probes to compare the chosen ones with.
    """
    reference, *targets = measured
    return [_row(reference, target, draws) for target in targets]


def overall(rows: Sequence[Row]) -> float:
    """Median error of the p95 over all that was not probed, targets together."""
    return _median([error for row in rows for error in (row.p95_errors or {}).values()])


def print_rows(rows: Sequence[Row]) -> None:
    """The table."""
    print("\np95 of operator variants that were not probed: median relative error (aim: 15%), from 5 probes")
    head = (
        "device",
        "unseen",
        "p95",
        "mean",
        "90% int.",
        "± width",
        "any 5",
        "common",
        "nearest",
        "none",
        "noise",
    )
    print("{:24} {:>6} {:>6} {:>6} {:>8} {:>8} {:>7} {:>7} {:>7} {:>7} {:>6}".format(*head))
    for row in rows:
        if row.skipped is not None:
            print(f"{row.target:24} skipped: {row.skipped}")
            continue
        rivals = (row.any_probes, row.common, row.nearest, row.prior)
        print(
            f"{row.target:24} {len(row.p95_errors or {}):6} {row.p95:6.1%} {row.mean:6.1%} "
            f"{row.covered:8.0%} {row.width:8.0%} "
            + " ".join(f"{error:7.1%}" for error in rivals)
            + f" {row.noise:6.1%}"
        )
    print(f"{'all together':24} {sum(len(row.p95_errors or {}) for row in rows):6} {overall(rows):6.1%}")


def _row(reference: Measured, target: Measured, draws: int) -> Row:
    if target.skipped is not None:
        return Row(target=target.title, skipped=target.skipped)
    there = {key: reference.profile(key) for key in target.classes}
    here = {key: target.profile(key) for key in target.classes}
    chosen = most_telling(there, PROBES)
    speed = fit_speed(_site(there), {key: here[key] for key in chosen})
    unseen = [key for key in here if key not in chosen]
    p95_s = {key: speed.forecast(key).p95_s for key in unseen}
    sd = {key: speed.forecast(key).p95_rel_sd for key in unseen}
    inside = [abs(np.log(here[key].p95_s / p95_s[key])) <= Z90 * sd[key] for key in unseen]
    halves = [[target.profile(key, half).p95_s for half in (0, 1)] for key in here]
    return Row(
        target=target.title,
        probes=chosen,
        p95_errors=_errors(p95_s, here),
        mean_errors={key: abs(speed.forecast(key).mean_s / here[key].mean_s - 1) for key in unseen},
        covered=float(np.mean(inside)),
        width=float(np.expm1(Z90 * np.median(list(sd.values())))),
        any_probes=_any_probes(there, here, draws),
        common=_median(_errors(_by_common(there, here, chosen), here).values()),
        nearest=_median(_errors(_by_nearest(there, here, chosen), here).values()),
        prior=_median(_errors({key: there[key].p95_s for key in unseen}, here).values()),
        noise=float(np.median([abs(one / other - 1) / 2 for one, other in halves])),
    )


def _site(there: Profiles) -> SiteProfile:
    return SiteProfile(site="reference", pipeline="", digest="", operators=there, request_mean_bytes=0.0)


def _errors(p95_s: Mapping[str, float], here: Profiles) -> dict[str, float]:
    return {key: abs(predicted_s / here[key].p95_s - 1) for key, predicted_s in p95_s.items()}


def _any_probes(there: Profiles, here: Profiles, draws: int) -> float:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(draws):
        chosen = [list(here)[at] for at in rng.choice(len(here), PROBES, replace=False)]
        speed = fit_speed(_site(there), {key: here[key] for key in chosen})
        p95_s = {key: speed.forecast(key).p95_s for key in here if key not in chosen}
        errors.append(_median(_errors(p95_s, here).values()))
    return _median(errors)


def _by_common(there: Profiles, here: Profiles, chosen: Sequence[str]) -> dict[str, float]:
    slowdown = float(np.exp(np.mean([np.log(here[key].p95_s / there[key].p95_s) for key in chosen])))
    return {key: slowdown * there[key].p95_s for key in here if key not in chosen}


def _by_nearest(there: Profiles, here: Profiles, chosen: Sequence[str]) -> dict[str, float]:
    def distance(key: str, probe: str) -> tuple[bool, float]:
        other_class = there[key].speed_class != there[probe].speed_class
        return other_class, abs(float(np.log(there[key].mean_s / there[probe].mean_s)))

    predicted = {}
    for key in here:
        if key not in chosen:
            probe = min(chosen, key=lambda probe, key=key: distance(key, probe))  # type: ignore[misc]
            predicted[key] = there[key].p95_s * here[probe].p95_s / there[probe].p95_s
    return predicted


def _median(errors: Collection[float]) -> float:
    return float(np.median(list(errors))) if errors else float("nan")
