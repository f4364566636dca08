"""What the benchmarks share: the machine they ran on, intervals, and where results go."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

BENCH = Path(__file__).resolve().parent
READ_TEXT = BENCH.parent / "examples" / "read_text"
RESULTS = BENCH / "results"
BOOTSTRAPS = 2000

_LIBRARIES = ("aiohttp", "msgpack", "msgspec", "numpy", "onnxruntime", "pillow", "psutil")


def machine() -> dict[str, Any]:
    """The machine and what runs on it, without anything that names this one machine or its user."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: version(name) for name in _LIBRARIES},
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown"


def median_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """Median with its 95% percentile-bootstrap interval: (median, low, high)."""
    found = np.asarray(values, float)
    drawn = np.random.default_rng(seed).integers(len(found), size=(BOOTSTRAPS, len(found)))
    low, high = np.quantile(np.median(found[drawn], axis=1), (0.025, 0.975))
    return float(np.median(found)), float(low), float(high)


def write_result(file: Path, document: Mapping[str, Any]) -> None:
    """Write a result as JSON that diffs well."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {file.name}")
