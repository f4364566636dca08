"""Real differences between devices, made on one machine: threads, affinity, a quota, a neighbour, formats."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PERIOD_US = 100_000
QUOTA = 0.5
CPU, OTHER_CPU = 0, 1
ALL = ("read-text", "onnx", "landmarks")
_NEIGHBOUR = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
while os.getppid() == parent:
    sum(range(100_000))
"""


class SkippedError(Exception):
    """A setting that cannot be had here, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One device."""

    name: str
    title: str
    groups: tuple[str, ...] = ALL
    threads: int = 1
    quota: float | None = None
    """Share of one core, enforced by a control group."""
    neighbour: bool = False
    """Whether another process keeps the same core busy."""
    int8: bool = False

    @property
    def cpus(self) -> set[int]:
        """Cores that it may use."""
        return {CPU} if self.threads == 1 else {CPU, OTHER_CPU}


SETTINGS = (
    Setting(name="reference", title="1 thread, one idle core"),
    Setting(name="threads", title="2 threads", threads=2),
    Setting(name="quota", title=f"CPU quota of {QUOTA:.0%}", quota=QUOTA),
    Setting(name="neighbour", title="a busy neighbour", neighbour=True),
    Setting(name="litert", title="LiteRT for ONNX Runtime", groups=("tflite",)),
    Setting(name="int8", title="int8 for fp32", groups=("read-text models",), int8=True),
)
"""The reference comes first."""


@contextmanager
def limited(pid: int, share: float) -> Iterator[None]:
    """A control group of our own that gives a process a share of one core.

    Raises:
        SkippedError: If none can be made here.
    """
    root, files = _cpu_controller(share)
    group = root / f"compass-bench-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise SkippedError(f"no control group can be made: {error.strerror}") from error
    try:
        _limit(group, files, pid)
        yield
    finally:
        _emptied(group, root)


def _cpu_controller(share: float) -> tuple[Path, dict[str, str]]:
    """Where CPU quotas are set, and what to write: version 1 if its controller is mounted, else version 2.

    Besides the quota the group goes before all others, as ``outrank`` has it without a group.
    """
    quota_us = int(share * PERIOD_US)
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup" and "cpu" in options.split(","):
            quota = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(quota_us)}
            return Path(folder), {"cpu.shares": "262144", **quota}
        if kind == "cgroup2":
            enabled = (Path(folder) / "cgroup.subtree_control").read_text(encoding="utf-8").split()
            if "cpu" in enabled:
                return Path(folder), {"cpu.weight": "10000", "cpu.max": f"{quota_us} {PERIOD_US}"}
    raise SkippedError("no control group of this machine sets CPU quotas")


def _limit(group: Path, files: dict[str, str], pid: int) -> None:
    try:
        for name, value in files.items():
            (group / name).write_text(value, encoding="utf-8")
        (group / "cgroup.procs").write_text(str(pid), encoding="utf-8")
    except OSError as error:
        raise SkippedError(f"the CPU quota cannot be set: {error.strerror}") from error


def _emptied(group: Path, root: Path) -> None:
    """Give a process that is still in it back, and remove the group."""
    for pid in (group / "cgroup.procs").read_text(encoding="utf-8").split():
        (root / "cgroup.procs").write_text(pid, encoding="utf-8")
    group.rmdir()


def outrank(pid: int) -> None:
    """Let a process that leads a session go before whatever else this machine does, where that is allowed.

    Linux shares cores among sessions first: there a process's own priority counts within its session alone.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, -20)
        Path(f"/proc/{pid}/autogroup").write_text("-20", encoding="utf-8")


@contextmanager
def busy_neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """A process that would keep the measured core busy, stopped until it is told to go on."""
    process = subprocess.Popen([sys.executable, "-c", _NEIGHBOUR, str(CPU)], start_new_session=True)
    process.send_signal(signal.SIGSTOP)
    outrank(process.pid)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
