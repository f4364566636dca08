"""What an agent says of itself."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import psutil

from compass_agent.bundles import Bundle
from compass_agent.config import AgentConfig
from compass_agent.runtimes import installed_runtimes
from compass_shared import __version__
from compass_shared.messages import BundleInfo, HardwareInfo, HelloMessage
from compass_shared.model_cache import ModelCache

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


def hello_of(
    config: AgentConfig,
    bundles: Mapping[str, Bundle],
    cache: ModelCache,
    *,
    session: int,
    data_address: str | None,
) -> HelloMessage:
    """The hello of an agent; it looks at the disk for the models held.

    Args:
        config: Its settings.
        bundles: Installed bundles by pipeline.
        cache: Its models.
        session: Its session epoch.
        data_address: Base URL of its data plane, if it is a worker.
    """
    return HelloMessage(
        session=session,
        tier=config.tier,
        agent_version=__version__,
        runtimes=installed_runtimes(),
        bundles={
            name: BundleInfo(
                version=bundle.pipeline.version,
                digest=bundle.pipeline.digest,
                code_sha256=bundle.code_sha256,
            )
            for name, bundle in bundles.items()
        },
        hardware=hardware(),
        cores=float(config.cores),
        utilisation_cap=config.utilisation_cap,
        prices=config.prices,
        power_w=config.power_w,
        device_profile=config.device_profile,
        emulated=config.emulated is not None,
        data_address=data_address,
        models=tuple(cache.hashes()[:MAX_MODELS_NAMED]),
    )
