"""What an agent is told at its start, by its command line, its SDK or a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compass_agent.emulate.link import Shape
from compass_agent.probing import Measure
from compass_shared.device_profile import DeviceProfile
from compass_shared.errors import ConfigError
from compass_shared.names import checked_name
from compass_shared.site import Prices, Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Settings of one agent; the defaults suit a device that was never described."""

    name: str
    bundles: tuple[Path, ...]
    """Folders of the installed pipelines."""
    cache_root: Path
    """Folder of the model cache."""
    state_dir: Path | None = None
    """Where assignments are kept over a restart; None keeps nothing."""
    fleet: str = "default"
    tier: Tier = Tier.DEVICE
    broker: str | None = None
    """``mqtt://host:port`` or ``mqtts://...``; None: the agent is alone."""
    listen: tuple[str, int] | None = None
    """Host and port of the data plane; port 0 takes a free one. None: not a worker."""
    data_address: str | None = None
    """Base URL under which others reach the data plane, if not the one it listens on."""
    cores: int = 1
    """Operators that run at once."""
    utilisation_cap: float = 0.7
    prices: Prices = field(default_factory=Prices)
    power_w: float = 0.0
    device_profile: str | None = None
    slowdown: Mapping[str, float] = field(default_factory=dict)
    """Speed class -> emulated slowdown; empty: the machine as it is."""
    shapes: Mapping[Tier, Shape] = field(default_factory=dict)
    """Tier of a worker -> emulated link to it."""
    measure: Measure = Measure.FULL
    """Which operators are measured; an agent without a broker has no use for it."""
    measure_budget_s: float = 20.0
    """Time for each measurement of one pipeline's operators."""
    telemetry_interval_s: float = 5.0

    def __post_init__(self) -> None:
        checked_name(self.name, "agent")
        if not 0 < self.utilisation_cap < 1:
            raise ConfigError(f"{self.utilisation_cap} must lie between 0 and 1", field="utilisation_cap")
        if self.cores < 1:
            raise ConfigError(f"{self.cores} must be at least 1", field="cores")

    @property
    def emulated(self) -> str | None:
        """Name of the emulated device profile, if any."""
        return (self.device_profile or "unnamed") if self.slowdown else None


def described_by(profile: DeviceProfile, *, emulate: bool) -> dict[str, object]:
    """Settings that follow from a device profile, for ``AgentConfig(**...)``.

    Args:
        profile: What is known of the device.
        emulate: Whether this machine plays the device, or is one.
    """
    return {
        "device_profile": profile.name,
        "tier": profile.tier,
        "cores": max(1, int(profile.cores.value)),
        "utilisation_cap": profile.utilisation_cap,
        "power_w": profile.power_w.value,
        "prices": profile.prices(),
        "slowdown": profile.slowdowns() if emulate else {},
    }
