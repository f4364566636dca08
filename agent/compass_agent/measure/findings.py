"""What ``compass-agent probe`` finds out about a pipeline here, and the file that a team can commit of it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from compass_agent.measure.accuracy import used_models
from compass_agent.measure.speed import SpeedReport
from compass_agent.measure.sustained import SustainedReport
from compass_agent.measure.trend import Trend
from compass_shared import __version__
from compass_shared.errors import ProfileError
from compass_shared.files import write_atomically
from compass_shared.messages import HardwareInfo
from compass_shared.pipeline import Pipeline
from compass_shared.profile import OperatorProfile, Provenance, SiteProfile

MEASUREMENTS_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """Figures of another way to run operators, beside those that plans are made with.

    Plans know one thread a call and one request at a time, so these stand apart and never mix with them.
    """

    pipeline: str
    threads: int
    batch: int
    """Requests for which each operator is called in one go; times are of all of them together."""
    operators: Mapping[str, OperatorProfile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """One pipeline on this machine."""

    profile: SiteProfile
    notes: tuple[str, ...] = ()
    """What the machine does to the figures, in sentences."""
    trends: Mapping[str, Trend] = field(default_factory=dict)
    """Variant -> how its times changed in minutes of work, where they did."""
    variations: tuple[Variation, ...] = ()


def brief_findings(report: SpeedReport) -> Findings:
    """What a short measurement found."""
    notes = [*_machine_notes(report), *([] if report.gaps is None else [str(report.gaps)])]
    return Findings(profile=report.profile, notes=tuple(notes))


def sustained_findings(report: SustainedReport) -> Findings:
    """What minutes of work found."""
    if report.trend is None:
        notes = ["too few rounds for a trend: measure longer, or fewer variants"]
    else:
        notes = [str(report.trend)]
    notes += [f"{variant} {trend}" for variant, trend in report.trends.items()]
    notes += [str(swap) for swap in report.swaps]
    return Findings(
        profile=report.profile, notes=(*notes, *_machine_notes(report)), trends=dict(report.trends)
    )


def with_provenance(
    found: SiteProfile, pipeline: Pipeline, hardware: HardwareInfo, runtimes: Mapping[str, str]
) -> SiteProfile:
    """The profile with what it was measured on and with, today."""
    today = datetime.datetime.now(tz=datetime.timezone.utc).date()
    device = f"{hardware.system} {hardware.machine}, {hardware.cores} cores, 1 thread a call"
    return replace(
        found,
        provenance=Provenance(
            device=device,
            date=today.isoformat(),
            compass=__version__,
            runtimes=dict(runtimes),
            models=used_models(pipeline),
        ),
    )


def save_findings(path: Path, findings: Sequence[Findings]) -> None:
    """Write profiles as a measurements file, all of it or nothing; what is no plan's is provenance.

    Raises:
        ProfileError: If it cannot be written.
    """
    provenance = {
        "source": "compass-agent probe",
        "notes": {found.profile.pipeline: list(found.notes) for found in findings if found.notes},
        "variations": [_plain(each) for found in findings for each in found.variations],
    }
    document = {
        "schema": MEASUREMENTS_SCHEMA,
        "kind": "measurements",
        "provenance": {key: value for key, value in provenance.items() if value},
        "sites": [_plain(found.profile) for found in findings],
    }
    try:
        write_atomically(path, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    except OSError as error:
        raise ProfileError(f"{path}: cannot be written: {error.strerror}") from error


def _machine_notes(report: SpeedReport | SustainedReport) -> list[str]:
    sizes = report.hiccups.sizes_s
    left_out = [f"{variant} is left out: {why}" for variant, why in report.failed.items()]
    if not sizes:
        return left_out
    return [
        *left_out,
        f"{len(sizes)} hiccups of the machine in {report.hiccups.busy_s:.0f} s of work, up to "
        f"{1e3 * max(sizes):.0f} ms: every variant is given its share of them",
    ]


def _plain(value: object) -> object:
    """As JSON, without what is not known."""
    built = msgspec.to_builtins(value)
    return _without_none(built)


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
