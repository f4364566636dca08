"""What an agent says of itself."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import psutil

from compass_agent.runtimes import installed_runtimes
from compass_shared import __version__
from compass_shared.messages import BundleInfo, HardwareInfo, HelloMessage

if TYPE_CHECKING:
    from compass_agent.shell import AgentShell

MAX_MODELS_NAMED = 500
"""A cache may hold more; a hello has a size limit."""


def hardware() -> HardwareInfo:
    """The machine this runs on."""
    return HardwareInfo(
        machine=platform.machine(),
        cores=psutil.cpu_count(logical=True) or 1,
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
    )


def hello_of(shell: AgentShell) -> HelloMessage:
    """The hello of a running agent."""
    config = shell.config
    return HelloMessage(
        session=shell.session,
        tier=config.tier,
        agent_version=__version__,
        runtimes=installed_runtimes(),
        bundles={
            name: BundleInfo(
                version=bundle.pipeline.version,
                digest=bundle.pipeline.digest,
                code_sha256=bundle.code_sha256,
            )
            for name, bundle in shell.bundles.items()
        },
        hardware=hardware(),
        cores=float(config.cores),
        utilisation_cap=config.utilisation_cap,
        prices=config.prices,
        power_w=config.power_w,
        device_profile=config.device_profile,
        emulated=config.emulated is not None,
        data_address=shell.data_address,
        models=tuple(shell.store.cache.hashes()[:MAX_MODELS_NAMED]),
    )
