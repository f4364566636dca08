"""The distribution: what is in it, that it installs alone, and that boards can resolve it from wheels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

LARGEST_BASE = 26  # distributions, with all that they need, ours not counted
ONLY_IN_EXTRAS = {"ai-edge-litert", "iotcore", "pillow", "rich", "scikit-learn", "scipy", "tflite-runtime"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What `python -m build` left: the sdist, and the wheel that was built from that sdist."""

    sdist: Path
    wheel: Path


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end, blind to a PYTHONPATH that would let an installed package find the checkout instead."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(part) for part in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, cwd=cwd, env=env)


def succeed(*command: str | Path, cwd: Path | None = None) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def git_files(*options: str) -> set[str]:
    """Files of the repository, tracked ones by default; skips the test outside of a git checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = succeed("git", "-C", ROOT, "ls-files", "-z", *options)
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def files_of_ours() -> set[str]:
    """Tracked files, and those that a commit of everything would add."""
    return git_files("--cached", "--others", "--exclude-standard")


@pytest.fixture(scope="module")
def registry() -> None:
    """Skip unless pip, configured as it is on this machine, reaches a package registry."""
    # No such version exists: whoever answers lists those that do, and nothing is downloaded.
    asked = run(sys.executable, "-m", "pip", "download", "--no-deps", "--dest", os.devnull, "msgspec==0")
    if not re.search(r"from versions: \d", asked.stderr):
        pytest.skip("pip reaches no package registry: it finds no release of msgspec")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("dist")
    succeed(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return Built(sdist=sdist, wheel=wheel)


@pytest.fixture(scope="module")
def bare_install(built: Built, registry: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of a new virtual environment that holds the wheel and its base dependencies."""
    venv = tmp_path_factory.mktemp("bare") / "venv"
    succeed(sys.executable, "-m", "venv", venv)
    succeed(venv / "bin" / "python", "-m", "pip", "install", "--quiet", built.wheel)
    return venv / "bin"


def test_sdist_holds_the_repository_and_nothing_else(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert git_files() - {".gitignore"} <= held
    assert held - {"PKG-INFO", ".gitignore"} <= files_of_ours()


def test_wheel_holds_three_packages_and_the_data(built: Built) -> None:
    held = set(zipfile.ZipFile(built.wheel).namelist())
    tops = {name.split("/")[0] for name in held if ".dist-info/" not in name}
    assert tops == {"compass_agent", "compass_coordinator", "compass_shared"}
    moved = {
        "shared/": "",
        "agent/": "",
        "coordinator/": "",
        "device_profiles/": "compass_shared/data/device_profiles/",
        "examples/": "compass_shared/data/examples/",
    }
    expected = {
        to + name.removeprefix(folder)
        for name in files_of_ours()
        for folder, to in moved.items()
        if name.startswith(folder)
    }
    assert {name for name in held if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)
    assert {f"{package}/py.typed" for package in tops} <= held


@pytest.mark.network
def test_bare_install_probes_its_machine(bare_install: Path) -> None:
    report = json.loads(succeed(bare_install / "compass-agent", "probe", "--json", cwd=bare_install))
    assert "onnx" in json.dumps(report["runtimes"])


@pytest.mark.network
def test_bare_install_names_the_extra_that_compass_needs(bare_install: Path) -> None:
    refused = run(bare_install / "compass", "demo", cwd=bare_install)
    assert refused.returncode != 0
    assert "pip install 'compass-agent[demo]'" in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.network
@pytest.mark.parametrize("python", ["3.10", "3.11"])
@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_base_resolves_from_wheels_alone(
    built: Built, registry: None, tmp_path: Path, python: str, machine: str
) -> None:
    report_file = tmp_path / "report.json"
    succeed(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
        *("--only-binary=:all:", "--implementation", "cp", "--python-version", python),
        *(option for tag in platform_tags(machine) for option in ("--platform", tag)),
        *("--target", tmp_path / "target", "--report", report_file),
        built.wheel,
        *base_requirements(built.wheel, python),
    )
    chosen: list[dict[str, Any]] = json.loads(report_file.read_text())["install"]
    names = {canonicalize_name(item["metadata"]["name"]) for item in chosen} - {"compass-agent"}
    assert all(item["download_info"]["url"].endswith(".whl") for item in chosen)
    assert {"aiohttp", "msgpack", "msgspec", "numpy", "onnxruntime", "paho-mqtt", "psutil"} <= names
    assert "tomli" in names or python != "3.10"
    assert not names & ONLY_IN_EXTRAS
    assert len(names) <= LARGEST_BASE, sorted(names)


def platform_tags(machine: str) -> list[str]:
    """What a manylinux_2_28 board accepts, best first: pip takes the tags of --platform literally."""
    first_glibc = 17 if machine == "aarch64" else 5
    named = ["manylinux2014"] if machine == "aarch64" else ["manylinux2014", "manylinux2010", "manylinux1"]
    numbered = [f"manylinux_2_{minor}" for minor in range(28, first_glibc - 1, -1)]
    return [f"{tag}_{machine}" for tag in [*numbered, *named]]


def base_requirements(wheel: Path, python: str) -> list[str]:
    """The wheel's own requirements for that Python, since pip evaluates markers for the one it runs on."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode(), headersonly=True)
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    wanted = (Requirement(line) for line in metadata.get_all("Requires-Dist", []))
    return [
        f"{requirement.name}{requirement.specifier}"
        for requirement in wanted
        if requirement.marker is None or requirement.marker.evaluate(environment)
    ]


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    # Written in pieces, so that this file is no hit of its own.
    hosts = ["pythonhosted" + r"\.org", r"//pypi" + r"\.", "registry" + r"\.npmjs", r"deb" + r"\.debian"]
    folders = [r"/(work|root|home/[a-z]+|Users/[A-Za-z]+)" + "/"]
    forbidden = re.compile(r"|".join([*hosts, *(rf"(?<![\w.$}}~-]){folder}" for folder in folders)]))
    hits = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name in sorted(git_files())
        for number, line in enumerate((ROOT / name).read_text(errors="replace").splitlines(), 1)
        if forbidden.search(line)
    ]
    assert not hits, "\n".join(hits)
