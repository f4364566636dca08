"""A new device's own device profile: the nearest known ones, and a file that starts from what was measured.

What is measured takes seconds and is coarse; the rest is taken from the nearest profile and marked as
derived. Measuring the pipelines that will run (``probe --bundle``, or the running agent) says more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compass_shared.device_profile import DeviceProfile, Figure

SHOWN = 3
"""How many of the nearest profiles are named."""
SOURCE = "measured by compass-agent probe --suggest"
CORES_SD = 0.5
MEMORY_SD = 0.7
"""Spread of cores and memory among devices of a kind, as standard deviation of the logarithm: they say less
of what a device is than its speed does."""
TAKEN_REL_SD = 0.5
"""At least so uncertain is what was taken from another device's profile."""
FIGURE_REL_SD = 0.3
"""Of a slowdown that states no uncertainty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known of the device after some seconds."""

    slowdowns: Mapping[str, float]
    """Speed class -> time relative to the reference core; ``python`` at least."""
    rel_sd: float
    """Uncertainty of each of them."""
    cores: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How far a known profile is from the device."""

    profile: DeviceProfile
    distance: float
    """Root mean square of the differences, in units of their uncertainty: below 1 it may be such a device."""
    ratios: Mapping[str, float]
    """Quantity (a speed class, ``cores``, ``memory``) -> the device's over the profile's."""


def nearest(
    measured: Measured, profiles: Mapping[str, DeviceProfile], count: int = SHOWN
) -> tuple[Match, ...]:
    """The known profiles that are most like a device, nearest first."""
    found = [_match(measured, profile) for _, profile in sorted(profiles.items())]
    return tuple(sorted(found, key=lambda match: match.distance)[:count])


def _match(measured: Measured, profile: DeviceProfile) -> Match:
    compared = list(_compared(measured, profile))
    squares = [(math.log(ratio) / sd) ** 2 for _, ratio, sd in compared]
    return Match(
        profile=profile,
        distance=math.sqrt(sum(squares) / len(squares)),
        ratios={name: ratio for name, ratio, _ in compared},
    )


def _compared(measured: Measured, profile: DeviceProfile) -> Iterator[tuple[str, float, float]]:
    """(Quantity, ratio, standard deviation of its logarithm)."""
    for name, slowdown in measured.slowdowns.items():
        there = profile.slowdown.get(name, profile.slowdown["default"])
        sd = math.hypot(measured.rel_sd, there.rel_sd or FIGURE_REL_SD)
        yield name, slowdown / there.value, sd
    yield "cores", measured.cores / profile.cores.value, CORES_SD
    yield "memory", measured.memory_bytes / profile.memory_bytes.value, MEMORY_SD


def suggested(measured: Measured, like: DeviceProfile, *, name: str, today: str) -> str:
    """A device profile of the device, as TOML that ``load_device_profile`` takes.

    Args:
        measured: What was measured.
        like: The nearest profile; its tier, links, power and prices are taken.
        name: Of the new profile, and of its file.
        today: Date of the measurement, ISO 8601.
    """

    def own(value: float, rel_sd: float | None = None) -> Figure:
        return Figure(value=value, source=SOURCE, date=today, rel_sd=rel_sd)

    def taken(figure: Figure, what: str = "") -> Figure:
        source = f"taken from {like.name}{what} by compass-agent probe --suggest"
        return Figure(
            value=figure.value,
            source=source,
            date=today,
            rel_sd=max(TAKEN_REL_SD, figure.rel_sd or 0),
            derived=True,
        )

    python = own(measured.slowdowns["python"], measured.rel_sd)
    tables = {"cores": own(measured.cores), "slowdown.default": python}
    for speed_class, slowdown in measured.slowdowns.items():
        tables[f"slowdown.{speed_class}"] = own(slowdown, measured.rel_sd)
    if (fp32 := measured.slowdowns.get("onnx-fp32")) is not None:
        source = "as onnx-fp32, by compass-agent probe --suggest"
        tables["slowdown.tflite"] = Figure(
            value=fp32, source=source, date=today, rel_sd=TAKEN_REL_SD, derived=True
        )
    tables["memory_bytes"] = own(measured.memory_bytes)
    tables["power_w"] = taken(like.power_w)
    for kind, link in like.links.items():
        for end in ("rtt_s", "up_bps", "down_bps"):
            tables[f"links.{kind}.{end}"] = taken(getattr(link, end), "'s typical link")
    for price in ("core_s_usd", "egress_byte_usd", "energy_j_usd"):
        if (figure := getattr(like, price)) is not None:
            tables[price] = taken(figure)
    head = {
        "schema": like.schema,
        "name": name,
        "title": f"{name}: nearest to {like.name}",
        "tier": like.tier.value,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in head.items()]
    lines.append(f"utilisation_cap = {like.utilisation_cap}  # a setting, not a measurement")
    return "\n".join([*lines, *(_table(path, figure) for path, figure in tables.items())])


def _table(path: str, figure: Figure) -> str:
    lines = [f"\n[{path}]", f"value = {_number(figure.value)}", f"source = {json.dumps(figure.source)}"]
    lines.append(f'date = "{figure.date}"')
    if figure.rel_sd is not None:
        lines.append(f"rel_sd = {figure.rel_sd:g}")
    if figure.derived:
        lines.append("derived = true")
    return "\n".join(lines)


def _number(value: float) -> str:
    """Digits that a measurement has, and all of a whole number."""
    return str(int(value)) if float(value).is_integer() else f"{value:.3g}"
