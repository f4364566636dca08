"""What the command line of the demo says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Settings of one demo."""

    bundle: Path
    fleet_file: Path
    accuracy: Path
    work: Path
    """Folder for state, logs and measurements."""
    cache_root: Path | None = None
    broker: str | None = None
    """None: the embedded one."""
    seconds: float = 15.0
    phases: tuple[str, ...] = ("compass", "device", "cloud")
    seed: int = 1
    rate_factor: float = 1.0
    check_configs: int = 4
    profile_now: int = 0
    measure_s: float = 20.0
