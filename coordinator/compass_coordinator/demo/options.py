"""What the command line of the demo says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Settings of one demo."""

    bundles: Mapping[str, Path]
    """Pipeline -> its folder."""
    fleet_file: Path
    accuracy: Mapping[str, Path]
    """Pipeline -> its accuracy table."""
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
    """Configs of each pipeline that are measured again; 0 for none."""
    profile_now: int = 0
    """Configs of each pipeline that are measured afresh, to plan with these alone; 0 for none."""
    measure_s: float = 20.0
    """Time for a site to measure the operators of one pipeline."""
