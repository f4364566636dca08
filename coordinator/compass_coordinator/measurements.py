"""Measurements of a fleet as a file: what agents reported, to plan from offline."""

from __future__ import annotations

from pathlib import Path

import msgspec

from compass_shared.device_profile import find_device_profile
from compass_shared.errors import ProfileError
from compass_shared.files import write_atomically
from compass_shared.fleet_file import AgentTable, Fleet
from compass_shared.pipeline import Pipeline
from compass_shared.problem import Problem
from compass_shared.profile import AccuracyTable, SiteProfile
from compass_shared.site import Link, Site, Tier

SCHEMA = 1


class MeasurementsDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: int
    kind: str
    sites: tuple[SiteProfile, ...]
    links: tuple[Link, ...]


def save_measurements(path: Path, problem: Problem) -> None:
    """Write what a problem's sites and links measured, all of it or nothing."""
    document = MeasurementsDocument(
        schema=SCHEMA,
        kind="measurements",
        sites=tuple(problem.profiles.values()),
        links=tuple(problem.links.values()),
    )
    write_atomically(path, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def load_measurements(path: Path) -> MeasurementsDocument:
    """Read measurements.

    Raises:
        ProfileError: If they cannot be read.
    """
    try:
        document = msgspec.json.decode(path.read_bytes(), type=MeasurementsDocument)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ProfileError(f"{path}: {error}") from error
    if document.schema != SCHEMA or document.kind != "measurements":
        raise ProfileError(f"{path}: expected measurements of schema {SCHEMA}")
    return document


def problem_from(
    fleet: Fleet, pipeline: Pipeline, measured: MeasurementsDocument, accuracy: AccuracyTable
) -> Problem:
    """The planning problem of a fleet file with measurements.

    Raises:
        ConfigError: If a device profile is missing.
        ProfileError: If the measurements are of another version of the pipeline.
    """
    for profile in measured.sites:
        if profile.pipeline == pipeline.name and profile.digest != pipeline.digest:
            raise ProfileError(
                f"site {profile.site!r} measured {pipeline.name!r} {profile.digest[:12]}, "
                f"the pipeline is {pipeline.digest[:12]}: measure again"
            )
    return Problem(
        pipelines={pipeline.name: pipeline},
        sites={agent.name: site_of(agent) for agent in fleet.agents},
        links={(link.source, link.target): link for link in measured.links},
        profiles={(profile.site, profile.pipeline): profile for profile in measured.sites},
        accuracy={pipeline.name: accuracy},
        queries=tuple(query for query in fleet.queries if query.pipeline == pipeline.name),
    )


def site_of(agent: AgentTable) -> Site:
    """The site of an agent of a fleet file, as its device profile describes it."""
    profile = find_device_profile(agent.profile)
    return Site(
        name=agent.name,
        tier=agent.tier,
        cores=float(int(agent.cores or max(1.0, profile.cores.value))),
        utilisation_cap=agent.utilisation_cap or profile.utilisation_cap,
        prices=profile.prices(),
        power_w=profile.power_w.value if agent.tier is Tier.DEVICE else 0.0,
    )
