"""Command lines of the demo's agents: what each is told of the fleet at its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compass_shared.device_profile import find_device_profile
from compass_shared.errors import ConfigError
from compass_shared.fleet_file import AgentTable, Fleet
from compass_shared.query import Query
from compass_shared.site import Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """Settings of a demo's stage."""

    fleet: Fleet
    fleet_name: str
    """Name used on the broker; differs from the file's where the broker is shared."""
    broker: str
    bundles: Mapping[str, Path]
    """Pipeline -> its folder."""
    accuracy: Mapping[str, Path]
    """Pipeline -> its accuracy table."""
    work: Path
    """Folder for state, logs and measurements."""
    cache_root: Path | None
    seed: int
    split: str = "heldout"
    measure_s: float = 20.0
    timeout_s: float = 240.0


def agent_options(agent: AgentTable, config: StageConfig, bundles: Mapping[str, Path]) -> list[str]:
    """Arguments of ``compass-agent`` for one agent.

    Args:
        agent: What the fleet file says of it.
        config: What all have in common.
        bundles: Pipeline -> bundle of those that it runs.
    """
    worker = agent.tier is not Tier.DEVICE
    options = [
        *("worker" if worker else "run", "--name", agent.name, "--fleet", config.fleet_name, "--drive"),
        *("--broker", config.broker),
        *(word for folder in bundles.values() for word in ("--bundle", str(folder))),
        *("--emulate" if agent.emulate else "--profile", agent.profile),
        *("--measure-seconds", str(config.measure_s)),
        *("--state", str(config.work / agent.name)),
        *cache_options(config.cache_root),
    ]
    if worker:
        options += ["--listen", "127.0.0.1:0", "--tier", agent.tier.value]
    if agent.cores is not None:
        options += ["--cores", str(int(agent.cores))]
    if agent.utilisation_cap is not None:
        options += ["--cap", str(agent.utilisation_cap)]
    for option in shape_options(agent):
        options += ["--shape", option]
    return options


def cache_options(root: Path | None) -> list[str]:
    """Arguments that name the model cache, where it is not the user's own."""
    return [] if root is None else ["--cache", str(root)]


def needed_bundles(
    agent: AgentTable, bundles: Mapping[str, Path], queries: Sequence[Query]
) -> Mapping[str, Path]:
    """Pipeline -> bundle of those that an agent runs: a device those of its queries, a worker those of all.

    Every agent runs one at least: where no query says which, all.
    """
    worker = agent.tier is not Tier.DEVICE
    wanted = {query.pipeline for query in queries if worker or query.origin == agent.name}
    return {name: folder for name, folder in bundles.items() if name in wanted} or bundles


def shape_options(agent: AgentTable) -> list[str]:
    """``--shape`` options of an agent: figures, or those of a link in its device profile.

    Raises:
        ConfigError: If the profile has no such link.
    """
    options = []
    for tier, shape in agent.shape.items():
        delay_s, up_bps, down_bps = shape.delay_s, shape.up_bps, shape.down_bps
        if shape.link is not None:
            profile = find_device_profile(agent.profile)
            if shape.link not in profile.links:
                known = ", ".join(profile.links) or "none"
                raise ConfigError(
                    f"device profile {profile.name!r} has no link {shape.link!r}; it has {known}"
                )
            figures = profile.links[shape.link]
            delay_s, up_bps, down_bps = (
                figures.rtt_s.value / 2,
                figures.up_bps.value,
                figures.down_bps.value,
            )
        options.append(f"{tier}={delay_s},{up_bps or 0},{down_bps or 0}")
    return options
