"""Device profiles: what is known of a kind of device before it is measured, every figure with its source."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from compass_shared.errors import ConfigError
from compass_shared.names import is_name
from compass_shared.resources import data_folder
from compass_shared.site import Prices, Tier
from compass_shared.toml_file import convert, line_of, read_toml

SCHEMA = 1


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One quantity with where it comes from."""

    value: float
    source: str
    """Publication, data sheet or page, in words or as an address."""
    date: str
    """When the source was published or read, ISO 8601."""
    rel_sd: float | None = None
    """Stated uncertainty, as a relative standard deviation."""
    derived: bool = False
    """Whether it was computed or judged from the source rather than read there."""


class LinkFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A typical access link."""

    rtt_s: Figure
    up_bps: Figure
    """Bytes per second."""
    down_bps: Figure


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of device."""

    schema: int
    name: str
    title: str
    tier: Tier
    cores: Figure
    """Operators it runs at once for Compass."""
    slowdown: dict[str, Figure]
    """Speed class -> time relative to the reference core; ``default`` for the classes not listed.

    Below 1 where the device is faster, as accelerators are (``onnx-cuda``): such a class can be planned
    with, but not emulated.
    """
    memory_bytes: Figure
    power_w: Figure
    """Drawn by one busy core."""
    links: dict[str, LinkFigures] = {}
    """Kind of access (``wifi``, ``lte``, ``5g``, ``ethernet``, ``broadband``) -> typical figures."""
    core_s_usd: Figure | None = None
    egress_byte_usd: Figure | None = None
    energy_j_usd: Figure | None = None
    utilisation_cap: float = 0.7
    readings: dict[str, Figure] = {}
    """What was published of the device and other figures follow from: scores, times, watts (SI units)."""

    def slowdowns(self) -> dict[str, float]:
        """Speed class -> slowdown."""
        return {name: figure.value for name, figure in self.slowdown.items()}

    def prices(self) -> Prices:
        """What using such a site costs; what is not stated costs nothing."""

        def value(figure: Figure | None) -> float:
            return 0.0 if figure is None else figure.value

        return Prices(
            core_s_usd=value(self.core_s_usd),
            egress_byte_usd=value(self.egress_byte_usd),
            energy_j_usd=value(self.energy_j_usd),
        )


def load_device_profile(path: Path) -> DeviceProfile:
    """Load one device profile.

    Raises:
        ConfigError: Naming file, field and line.
    """
    tables, text = read_toml(path)
    profile = convert(tables, DeviceProfile, file=path, text=text)

    def refuse(problem: str, field: str) -> ConfigError:
        return ConfigError(problem, file=path, field=field, line=line_of(text, field))

    if profile.schema != SCHEMA:
        raise refuse(f"schema {profile.schema} is not {SCHEMA}", "schema")
    if not is_name(profile.name) or profile.name != path.stem:
        raise refuse(f"{profile.name!r} must be the file's own name", "name")
    if "default" not in profile.slowdown:
        raise refuse("give slowdown.default, for speed classes that are not listed", "slowdown")
    for name, figure in profile.slowdown.items():
        if not 0 < figure.value < math.inf:
            raise refuse(f"{figure.value} must be positive", f"slowdown.{name}.value")
    for field, figure in (("cores", profile.cores), ("memory_bytes", profile.memory_bytes)):
        if figure.value <= 0:
            raise refuse(f"{figure.value} must be positive", f"{field}.value")
    if not 0 < profile.utilisation_cap < 1:
        raise refuse("must lie between 0 and 1", "utilisation_cap")
    return profile


def find_device_profile(name_or_path: str) -> DeviceProfile:
    """Load a profile by file, or by name among those that Compass brings.

    Raises:
        ConfigError: If there is none; the error lists the known ones.
    """
    if name_or_path.endswith(".toml"):
        return load_device_profile(Path(name_or_path))
    folder = data_folder("device_profiles")
    path = folder / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.toml")))
        raise ConfigError(f"no device profile is called {name_or_path!r}; there are {known}", field="profile")
    return load_device_profile(path)


def known_device_profiles() -> dict[str, DeviceProfile]:
    """All profiles that Compass brings, by name.

    Raises:
        ConfigError: If one is damaged.
    """
    files = data_folder("device_profiles").glob("*.toml")
    return {profile.name: profile for profile in map(load_device_profile, sorted(files))}
