"""Running ``compass demo`` as a user does, in a process of its own, and looking at what it leaves behind."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from support.bundles import write_tiny_accuracy, write_tiny_bundle

MARK = "COMPASS_DEMO_UNDER_TEST"
"""Environment variable that all processes of one demo inherit."""

_FLEET = """\
schema = 1
name = "tiny-demo"

[[agents]]
name = "cloud"
tier = "cloud"
profile = "cloud-vcpu"
emulate = true
cores = 1

[[agents]]
name = "edge"
tier = "edge"
profile = "edge-nuc"
emulate = true
cores = 1

[[agents]]
name = "phone"
tier = "device"
profile = "phone-midrange"
emulate = true
cores = 1
shape = {{ edge = {{ link = "wifi" }}, cloud = {{ link = "lte" }} }}

[[agents]]
name = "laptop"
tier = "device"
profile = "laptop"
emulate = true
cores = 1
shape = {{ edge = {{ delay_s = 0.001 }} }}

[query_grid]
seed = 1
pipeline = "{pipeline}"
origins = ["phone", "laptop"]
latency_p95_s = [2.0, 3.0, 4.0]
accuracy = [0.5, 0.9, 0.99]
cost_usd_per_1000 = [1.0, 2.0, 3.0]
rate_hz = [3.0, 4.0, 5.0]
weight = [1.0, 2.0, 3.0]
"""


def tiny_options(folder: Path) -> list[str]:
    """Options of a demo that takes seconds: the tiny bundle on a fleet of two devices and two workers."""
    bundle = write_tiny_bundle(folder)
    fleet = folder / "fleet.toml"
    fleet.write_text(_FLEET.format(pipeline=bundle.name))
    return [
        *("--bundle", str(bundle), "--fleet", str(fleet), "--accuracy", str(write_tiny_accuracy(bundle))),
        *("--check", "0", "--measure-seconds", "0.2", "--cache", str(folder / "cache"), "--plain"),
    ]


_SHARED_FLEET = """\
schema = 1
name = "shared-demo"

[[agents]]
name = "cloud"
tier = "cloud"
profile = "cloud-vcpu"
emulate = true
cores = 1

[[agents]]
name = "phone"
tier = "device"
profile = "phone-midrange"
emulate = true
cores = 1

[[agents]]
name = "laptop"
tier = "device"
profile = "laptop"
emulate = true
cores = 1

[[queries]]
name = "ask"
origin = "phone"
pipeline = "first"
rate_hz = 5.0
slo = { latency_p95_s = 2.0, accuracy = 0.9, cost_usd_per_1000 = 1.0 }

[[queries]]
name = "look"
origin = "laptop"
pipeline = "second"
rate_hz = 4.0
weight = 2.0
slo = { latency_p95_s = 2.0, accuracy = 0.5, cost_usd_per_1000 = 1.0 }

[[queries]]
name = "nightly"
origin = "cloud"
pipeline = "second"
rate_hz = 6.0
slo = { latency_p95_s = 2.0, accuracy = 0.5, cost_usd_per_1000 = 1.0 }
"""
SPLIT = {"scale": "device", "classify": "cloud", "label": "cloud"}
"""The fixed split of its first pipeline; the second has none."""


def shared_options(folder: Path) -> list[str]:
    """Options of a short demo of two pipelines, each on a device of its own, that share a worker.

    One query of the second starts at the worker itself.
    """
    bundles = [write_tiny_bundle(folder, name=name) for name in ("first", "second")]
    for bundle in bundles:
        write_tiny_accuracy(bundle)
    with (bundles[0] / "pipeline.toml").open("a") as file:
        file.write("[fixed_split]\n" + "".join(f'{name} = "{tier}"\n' for name, tier in SPLIT.items()))
    fleet = folder / "fleet.toml"
    fleet.write_text(_SHARED_FLEET)
    return [
        *(word for bundle in bundles for word in ("--bundle", str(bundle))),
        *("--fleet", str(fleet), "--check", "2", "--measure-seconds", "0.2"),
        *("--cache", str(folder / "cache"), "--plain"),
    ]


class RunningDemo:
    """A demo in a process group of its own, as a shell starts it.

    Args:
        options: After ``compass demo``.
        log: Where its output goes.
    """

    def __init__(self, options: Sequence[str], log: Path) -> None:
        self._mark = secrets.token_hex(8)
        self.shown: list[str] = []
        """Lines on stderr."""
        self._log = log.open("wb")
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "compass_coordinator", "demo", *options],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.PIPE,
            env={**os.environ, MARK: self._mark},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.shown.append(line.decode(errors="replace").rstrip())

    def until(self, condition: Callable[[], object], what: str, patience_s: float = 120.0) -> None:
        """Wait while the demo runs."""
        end_s = time.monotonic() + patience_s
        while not condition():
            assert self.process.poll() is None, f"it ended before {what}:\n" + "\n".join(self.shown)
            assert time.monotonic() < end_s, f"waited in vain for {what}:\n" + "\n".join(self.shown)
            time.sleep(0.02)

    def until_shown(self, text: str) -> None:
        """Wait for a line on stderr."""
        self.until(lambda: any(text in line for line in self.shown), repr(text))

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does: SIGINT to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self, patience_s: float) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(patience_s)
        self._reader.join(10.0)
        return code

    @property
    def family(self) -> list[psutil.Process]:
        """Every process that it started and that still runs, itself included."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def child(self, *words: str) -> psutil.Process:
        """The one process whose command line holds these words."""
        (found,) = (process for process in self.family if set(words) <= set(process.cmdline()))
        return found

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and process.environ().get(MARK) == self._mark
        except psutil.Error:  # gone meanwhile, or somebody else's
            return False

    def clear(self) -> None:
        """End whatever a failed test left."""
        for process in self.family:
            process.kill()
        self.process.wait()
        self._reader.join(10.0)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self._log.close()


@contextmanager
def running_demo(options: Sequence[str], folder: Path) -> Iterator[RunningDemo]:
    """A demo that is gone when the block ends, whatever happened."""
    demo = RunningDemo(options, folder / "demo.log")
    try:
        yield demo
    finally:
        demo.clear()
