"""The applications that ``compass demo --app`` knows, and where their files are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compass_shared.errors import ConfigError
from compass_shared.pipeline_file import FILE_NAME, load_pipeline
from compass_shared.resources import data_folder

DEFAULT_APP = "read-text"


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """One application: a folder in ``examples`` with a ``fleet.toml``, and how its demo goes."""

    name: str
    line: str
    """What it is, for lists."""
    policies: tuple[str, ...] = ("compass", "device", "cloud", "fixed")
    check_configs: int = 2
    """Configs of every pipeline whose accuracy is measured again."""
    measure_s: float = 20.0
    """Time for a site to measure the operators of one pipeline."""

    @property
    def folder(self) -> Path:
        """Its example.

        Raises:
            ConfigError: If this installation does not have it.
        """
        found = _example(self.name)
        if not found.is_dir():
            raise ConfigError(f"this installation brings no {found.name} in examples; install it again")
        return found


APPS: Mapping[str, App] = {
    app.name: app
    for app in (
        App(
            name="read-text",
            line="pages of text, photographed and read",
            policies=("compass", "device", "cloud"),
            check_configs=4,
        ),
        App(name="meeting", line="speech as it ends: transcribed, summed up, and searched for answers"),
        App(name="gaming", line="hands and poses in camera frames: gestures within tens of milliseconds"),
        App(name="driving", line="street scenes: objects found, tracked and classified, faces blurred first"),
        App(
            name="mixed",
            line="meeting, gaming and driving at once, competing for the same edge and cloud",
            measure_s=10.0,  # workers measure three pipelines
        ),
    )
}


def app_of(name: str) -> App:
    """The application of that name.

    Raises:
        ConfigError: If there is none; the message lists those there are.
    """
    if name not in APPS:
        raise ConfigError(f"{name!r} is no application; there are:\n{listing()}", field="--app")
    return APPS[name]


def listing() -> str:
    """All applications, a line each."""
    width = max(map(len, APPS))
    return "\n".join(f"  {app.name:{width}}  {app.line}" for app in APPS.values())


def bundles_for(pipelines: Iterable[str], given: Sequence[Path]) -> dict[str, Path]:
    """Pipeline -> bundle that brings it: those given, then those of the examples.

    Args:
        pipelines: What the queries of a fleet want.
        given: Bundles that are there in any case, whatever the examples have.

    Raises:
        ConfigError: If two bring one pipeline, or nothing brings one that is wanted.
    """
    found: dict[str, Path] = {}
    for folder in given:
        name = load_pipeline(folder).name
        if name in found:
            raise ConfigError(f"two bundles bring pipeline {name!r}", file=folder)
        found[name] = folder
    for name in sorted(set(pipelines) - set(found)):
        folder = _example(name)
        if not (folder / FILE_NAME).is_file() or load_pipeline(folder).name != name:
            raise ConfigError(
                f"queries want pipeline {name!r}, which no --bundle and no example brings", field="--bundle"
            )
        found[name] = folder
    return found


def _example(name: str) -> Path:
    return data_folder("examples") / name.replace("-", "_")
