"""Measures every setting on the same inputs, in turns, so that what else the machine does meets them all."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import BENCH, RESULTS, machine
from compass_shared.model_cache import default_cache_dir
from compass_shared.profile import OperatorProfile
from profiling.devices.quantised import int8_models
from profiling.devices.settings import SETTINGS, Setting, SkippedError, busy_neighbour, limited, outrank

RESULT = RESULTS / "profiler_devices.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured under one setting."""

    name: str
    title: str
    skipped: str | None
    """Why it was not measured."""
    classes: Mapping[str, str]
    """Variant -> speed class."""
    visits: Mapping[str, Sequence[Sequence[float]]]
    """Variant -> visit (page after page, round after round) -> times in seconds."""
    pages: int

    def profile(self, variant: str, half: int | None = None) -> OperatorProfile:
        """A variant's figures over all rounds, or over every second one, as an agent would state them."""
        visits = self.visits[variant]
        rounds = (visits[start : start + self.pages] for start in range(0, len(visits), self.pages))
        kept = [lot for index, lot in enumerate(rounds) if half is None or index % 2 == half]
        times = np.array([time_s for lot in kept for visit in lot for time_s in visit])
        return OperatorProfile(
            variant=variant,
            mean_s=float(times.mean()),
            var_s2=float(times.var(ddof=1)),
            p95_s=float(np.quantile(times, 0.95)),
            count=len(times),
            output_mean_bytes=0.0,
            speed_class=self.classes[variant],
        )


def measure(file: Path, *, pages: int, rounds: int, only: Sequence[str] | None = None) -> None:
    """Measure all settings that can be had here and keep the times.

    Args:
        file: Where to.
        pages: Inputs of read-text.
        rounds: How often each is visited.
        only: Targets, by name; all by default.
    """
    document: dict[str, Any] = {"kind": "bench-profiler-devices", "machine": machine(), "pages": pages}
    document["date"] = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    wanted = [SETTINGS[0], *(setting for setting in SETTINGS[1:] if not only or setting.name in only)]
    started_s = time.monotonic()
    with ExitStack() as stack:
        opened = {setting.name: _opened(stack, setting, pages) for setting in wanted}
        devices = {name: found for name, found in opened.items() if isinstance(found, _Device)}
        for visit in range(pages * rounds):
            for device in devices.values():
                device.visit(visit % pages)
            print(f"\rvisit {visit + 1} of {pages * rounds}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    document["seconds"] = round(time.monotonic() - started_s)
    document["load_after"] = round(os.getloadavg()[0], 2)
    document["settings"] = [_kept(setting, opened[setting.name]) for setting in wanted]
    _write(file, document)


def read_measured(file: Path) -> list[Measured]:
    """What ``measure`` kept, the reference first."""
    document = json.loads(file.read_text(encoding="utf-8"))
    return [
        Measured(
            name=found["name"],
            title=found["title"],
            skipped=found["skipped"],
            classes=found["classes"],
            visits={
                variant: [[1e-6 * float(time_us) for time_us in visit.split()] for visit in row.split("|")]
                for variant, row in found["times_us"].items()
            },
            pages=document["pages"],
        )
        for found in document["settings"]
    ]


class _Device:
    """A child under its setting."""

    def __init__(self, child: subprocess.Popen[str], neighbour: subprocess.Popen[bytes] | None) -> None:
        self._child, self._neighbour = child, neighbour
        self.classes: dict[str, str] = self._heard()
        self.times_us: dict[str, str] = dict.fromkeys(self.classes, "")

    def visit(self, page: int) -> None:
        """Let it run everything on one page while its neighbour, if it has one, is busy."""
        assert self._child.stdin is not None
        if self._neighbour:
            self._neighbour.send_signal(signal.SIGCONT)
        self._child.stdin.write(f"{page}\n")
        self._child.stdin.flush()
        times: Mapping[str, Sequence[float]] = self._heard()
        if self._neighbour:
            self._neighbour.send_signal(signal.SIGSTOP)
        for variant, lasted in times.items():
            row = " ".join(
                f"{1e6 * time_s:.4g}" if time_s < 0.01 else f"{1e6 * time_s:.0f}" for time_s in lasted
            )
            self.times_us[variant] += f"|{row}" if self.times_us[variant] else row

    def _heard(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("the measuring process ended; what it said is above")
        return json.loads(line)


def _opened(stack: ExitStack, setting: Setting, pages: int) -> _Device | SkippedError:
    try:
        return stack.enter_context(_device(setting, pages))
    except SkippedError as reason:
        print(f"skipped: {setting.title}: {reason}")
        return reason


def _kept(setting: Setting, found: _Device | SkippedError) -> dict[str, Any]:
    """What the file holds of one setting."""
    kept: dict[str, Any] = {"name": setting.name, "title": setting.title, "skipped": None}
    if isinstance(found, SkippedError):
        return kept | {"skipped": str(found), "classes": {}, "times_us": {}}
    return kept | {"classes": found.classes, "times_us": found.times_us}


@contextmanager
def _device(setting: Setting, pages: int) -> Iterator[_Device]:
    with ExitStack() as stack:
        replaced: dict[str, str] = {}
        if setting.int8:
            folder = default_cache_dir(os.environ) / "bench-int8"
            replaced = {sha256: str(path) for sha256, path in int8_models(folder).items()}
        options = {
            "pages": pages,
            "threads": setting.threads,
            "groups": setting.groups,
            "replaced": replaced,
        }
        child = stack.enter_context(_child(options))
        os.sched_setaffinity(child.pid, setting.cpus)
        outrank(child.pid)
        if setting.quota is not None:
            stack.enter_context(limited(child.pid, setting.quota))
        neighbour = stack.enter_context(busy_neighbour()) if setting.neighbour else None
        yield _Device(child, neighbour)


@contextmanager
def _child(options: Mapping[str, object]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "profiling.devices.child", json.dumps(options)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    child = subprocess.Popen(
        command,
        cwd=BENCH,
        env={**os.environ, **one_thread},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _write(file: Path, document: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
