"""The device profiles that Compass brings, and what the loader refuses."""

from __future__ import annotations

import math
import re
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING

import msgspec
import pytest

from compass_shared.device_profile import Figure, find_device_profile, load_device_profile
from compass_shared.errors import ConfigError
from compass_shared.resources import data_folder
from compass_shared.site import Tier
from support.markdown import page, tables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = sorted(file.stem for file in data_folder("device_profiles").glob("*.toml"))
PROFILES_AT_LEAST = 15
MEASURED_AT_LEAST = 3
GEEKBENCH_OF_REFERENCE = 2500
ADDRESS = re.compile(r"\bhttps?://[^\s,;()]+")

TABLE = [
    line.strip()
    for line in (data_folder("device_profiles") / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| [")
]

GOOD = """\
schema = 1
name = "box"
title = "A box"
tier = "edge"

[cores]
value = 2
source = "its label"
date = "2026-01-01"

[slowdown.default]
value = 1.5
source = "its label"
date = "2026-01-01"

[memory_bytes]
value = 1e9
source = "its label"
date = "2026-01-01"

[power_w]
value = 5
source = "its label"
date = "2026-01-01"
"""


def figures(document: object, path: str = "") -> Iterator[tuple[str, Figure]]:
    """Every figure of a profile with its dotted path."""
    if isinstance(document, Figure):
        yield path, document
    elif isinstance(document, msgspec.Struct):
        for name in document.__struct_fields__:
            yield from figures(getattr(document, name), f"{path}.{name}".lstrip("."))
    elif isinstance(document, dict):
        for name, value in document.items():
            yield from figures(value, f"{path}.{name}")


def written(folder: Path, text: str) -> Path:
    path = folder / "box.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_demos_devices_and_workers_are_there() -> None:
    tiers = {name: find_device_profile(name).tier for name in NAMES}
    assert {"phone-midrange", "jetson-orin-nano", "laptop"} <= {
        n for n, t in tiers.items() if t is Tier.DEVICE
    }
    assert set(tiers.values()) == set(Tier)


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) >= PROFILES_AT_LEAST


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_where_it_comes_from(name: str) -> None:
    found = dict(figures(find_device_profile(name)))
    assert {"cores", "memory_bytes", "power_w", "slowdown.default"} <= found.keys()
    for path, figure in found.items():
        assert figure.source.strip(), path
        assert date.fromisoformat(figure.date) <= datetime.now(timezone.utc).date(), path
        assert 0 < figure.value < math.inf, path
        assert figure.rel_sd is None or 0 < figure.rel_sd < 1, path
        assert all(each.startswith("https://") for each in ADDRESS.findall(figure.source)), path


@pytest.mark.parametrize("name", NAMES)
def test_what_was_judged_is_marked_and_uncertain(name: str) -> None:
    profile = find_device_profile(name)
    for path, figure in figures(profile):
        if figure.derived:
            assert figure.rel_sd is not None, path
        else:
            assert ADDRESS.search(figure.source), path
        if "general knowledge" in figure.source.lower():
            assert figure.derived, path
    for name_of_class, figure in profile.slowdown.items():
        assert figure.derived, name_of_class
        assert figure.rel_sd is not None, name_of_class


@pytest.mark.parametrize("name", NAMES)
def test_enough_was_read_on_public_pages(name: str) -> None:
    """Prices of electricity and typical lines are the same for all; they do not count."""
    shared = ("links.", "energy_j_usd", "egress_byte_usd")
    own = {path: figure for path, figure in figures(find_device_profile(name)) if not path.startswith(shared)}
    read = [path for path, figure in own.items() if not figure.derived]
    assert len(read) >= MEASURED_AT_LEAST, read


def test_a_geekbench_score_gives_the_slowdown() -> None:
    profiles = [find_device_profile(name) for name in NAMES]
    scored = [profile for profile in profiles if "geekbench6_single" in profile.readings]
    assert len(scored) >= PROFILES_AT_LEAST // 2
    for profile in scored:
        expected = GEEKBENCH_OF_REFERENCE / profile.readings["geekbench6_single"].value
        assert profile.slowdowns()["default"] == pytest.approx(expected, abs=0.006), profile.name


@pytest.mark.parametrize("name", NAMES)
def test_slowdowns_cover_the_demos_speed_classes(name: str) -> None:
    assert {"default", "python", "onnx-fp32"} <= find_device_profile(name).slowdowns().keys()


@pytest.mark.parametrize("name", NAMES)
def test_accelerators_say_that_they_are_untested(name: str) -> None:
    accelerators = ("onnx-cuda", "onnx-tensorrt", "onnx-coreml", "tflite-gpu")
    for speed_class, figure in find_device_profile(name).slowdown.items():
        if speed_class in accelerators:
            assert figure.source.startswith("Untested here."), speed_class


@pytest.mark.parametrize("name", NAMES)
def test_links_and_caps(name: str) -> None:
    profile = find_device_profile(name)
    assert profile.links
    assert set(profile.links) <= {"wifi", "ethernet", "broadband", "lte", "5g"}
    assert profile.utilisation_cap == (0.6 if profile.tier is Tier.DEVICE else 0.7)


def test_the_page_counts_what_the_files_hold() -> None:
    said = {row[0]: row[1:] for row in (re.findall(r"[^|]+", line) for line in TABLE) if len(row) > 1}
    for name in NAMES:
        profile = find_device_profile(name)
        derived = [figure.derived for _, figure in figures(profile)]
        title, slowdown, cores, read, judged = (cell.strip() for cell in said[f" [{name}]({name}.toml) "])
        assert title == profile.title
        assert slowdown == f"{profile.slowdowns()['default']:g}"
        assert cores == f"{profile.cores.value:g}"
        assert (int(read), int(judged)) == (derived.count(False), derived.count(True)), name


def test_the_page_on_devices_shows_what_the_files_hold() -> None:
    accelerators = ("onnx-cuda", "onnx-tensorrt", "onnx-coreml", "tflite-gpu")
    shown = {row[0]: row[1:] for row in tables(page("devices.md"))[-1]}
    assert shown.keys() == {f"[{name}](../device_profiles/{name}.toml)" for name in NAMES}
    for name in NAMES:
        profile = find_device_profile(name)
        slowdowns = profile.slowdowns()
        int8 = slowdowns.get("onnx-int8", slowdowns["default"])
        assert shown[f"[{name}](../device_profiles/{name}.toml)"] == [
            profile.tier.value,
            f"{slowdowns['default']:.2f}",
            f"{slowdowns['onnx-fp32']:.2f}, {int8:.2f}",
            f"{profile.cores.value:g}",
            f"{profile.memory_bytes.value / 1e9:.1f}",
            ", ".join(profile.links),
            ", ".join(f"`{each}`" for each in slowdowns if each in accelerators) or "-",
        ], name


def test_only_rented_and_owned_servers_charge_for_cores() -> None:
    for name in NAMES:
        profile = find_device_profile(name)
        assert (profile.core_s_usd is None) == (profile.tier is Tier.DEVICE), name


def test_a_profile_by_path(tmp_path: Path) -> None:
    profile = find_device_profile(str(written(tmp_path, GOOD)))
    assert (profile.name, profile.tier, profile.slowdowns()) == ("box", Tier.EDGE, {"default": 1.5})


def test_an_accelerator_is_faster_than_the_reference_core(tmp_path: Path) -> None:
    faster = GOOD + '[slowdown.onnx-cuda]\nvalue = 0.1\nsource = "its label"\ndate = "2026-01-01"\n'
    assert load_device_profile(written(tmp_path, faster)).slowdowns()["onnx-cuda"] == 0.1


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        find_device_profile("toaster")
    assert all(name in caught.value.problem for name in ["'toaster'", *NAMES])


@pytest.mark.parametrize(
    ("old", "new", "field", "line"),
    [
        ('title = "A box"', 'title = "A box"\ncolour = "red"', "colour", 4),
        ("[cores]\nvalue = 2", "[cores]\nvalue = 2\nunit = 1", "cores.unit", 8),
        ("[cores]\nvalue = 2", '[cores]\nvalue = "two"', "cores.value", 7),
        ("[cores]\nvalue = 2", "[cores]\nvalue = 0", "cores.value", 7),
        ("value = 1e9", "value = -1", "memory_bytes.value", 17),
        ("[slowdown.default]", "[slowdown.python]", "slowdown", 11),
        ("value = 1.5", "value = 0", "slowdown.default.value", 12),
        ('name = "box"', 'name = "crate"', "name", 2),
        ("schema = 1", "schema = 2", "schema", 1),
        ('tier = "edge"', 'tier = "fog"', "tier", 4),
        ('tier = "edge"', 'tier = "edge"\nutilisation_cap = 1.0', "utilisation_cap", 5),
    ],
)
def test_what_is_refused_names_file_field_and_line(
    tmp_path: Path, old: str, new: str, field: str, line: int
) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_device_profile(path)
    assert (caught.value.file, caught.value.field, caught.value.line) == (str(path), field, line)
