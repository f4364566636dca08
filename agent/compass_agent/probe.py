"""What this machine offers to Compass: hardware, runtimes, accelerators, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions

from compass_agent.hello import hardware
from compass_agent.measure.findings import Variation
from compass_agent.measure.trend import Trend
from compass_agent.runtimes import available_runtimes
from compass_shared import __version__
from compass_shared.messages import HardwareInfo
from compass_shared.profile import SiteProfile

_ONNX_IMPORT = "onnxruntime/__init__.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """Everything that ``compass-agent probe`` found out."""

    compass: str
    hardware: HardwareInfo
    runtimes: dict[str, str]
    """Runtime -> library and version."""
    warnings: tuple[str, ...]
    profiles: tuple[SiteProfile, ...] = ()
    """Measured pipelines, if bundles were given."""
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Pipeline -> what the machine does to its figures, in sentences."""
    trends: Mapping[str, Mapping[str, Trend]] = field(default_factory=dict)
    """Pipeline -> variant -> how its times changed in minutes of work, where they did."""
    variations: tuple[Variation, ...] = ()
    """Figures with other threads and batches, beside those that plans are made with."""


def probe() -> ProbeReport:
    """Look at the machine; nothing is measured."""
    return ProbeReport(
        compass=__version__,
        hardware=hardware(),
        runtimes=available_runtimes(),
        warnings=tuple(overlaid_onnx(distributions())),
    )


def overlaid_onnx(installed: Iterable[Distribution]) -> list[str]:
    """Warn of several distributions that install the one package ``onnxruntime`` over each other.

    The last one installed wins file by file: providers vanish or imports fail, and uninstalling one breaks
    the other.
    """
    owners = sorted(
        {
            f"{dist.metadata['Name']} {dist.version}"
            for dist in installed
            if (dist.metadata["Name"] or "").lower().startswith("onnxruntime") and _has_onnx(dist)
        }
    )
    if len(owners) < 2:
        return []
    return [
        f"{len(owners)} distributions install the package onnxruntime over each other ({', '.join(owners)}): "
        "uninstall all of them, then install the one you want"
    ]


def _has_onnx(dist: Distribution) -> bool:
    # Without a file list (a system package) the name alone has to do.
    return dist.files is None or any(str(file) == _ONNX_IMPORT for file in dist.files)
