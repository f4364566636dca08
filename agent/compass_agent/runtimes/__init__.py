"""Runtimes by the name that ``pipeline.toml`` gives them; a library is imported when first asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from compass_agent.runtimes.base import LoadedModel, Runtime
from compass_shared.errors import BackendError, ModelLoadError


def _onnx() -> Runtime:
    from compass_agent.runtimes.onnx import OnnxRuntime  # noqa: PLC0415

    return OnnxRuntime()


def _python() -> Runtime:
    from compass_agent.runtimes.python import PythonRuntime  # noqa: PLC0415

    return PythonRuntime()


def _tflite() -> Runtime:
    from compass_agent.runtimes.tflite import TfliteRuntime  # noqa: PLC0415

    return TfliteRuntime()


RUNTIMES: Mapping[str, Callable[[], Runtime]] = {"onnx": _onnx, "python": _python, "tflite": _tflite}


def open_runtime(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        ModelLoadError: If it is unknown, or its library is missing or does not work here.
    """
    if name not in RUNTIMES:
        raise ModelLoadError(f"there is no runtime {name!r}; there are {', '.join(RUNTIMES)}")
    try:
        return RUNTIMES[name]()
    except ImportError as error:
        extra = f"[{name}]" if name == "tflite" else ""
        raise ModelLoadError(
            f"the {name} runtime is not installed: pip install 'compass-agent{extra}' ({error})"
        ) from error


_LIBRARIES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "onnx": {"onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")},
    "tflite": {"ai_edge_litert": ("ai-edge-litert",), "tflite_runtime": ("tflite-runtime",)},
}
"""Runtime -> packages that it can use, the first found -> distributions that may have brought them."""


def installed_runtimes() -> dict[str, str]:
    """Name -> library and version of every runtime that is installed.

    Nothing is imported for it: an agent that runs no model of a library need not carry it in memory. So a
    library that is there and broken is named as well; ``available_runtimes`` finds that out.
    """
    from compass_agent.runtimes.openai import configured  # noqa: PLC0415  # other runtimes do without

    found = {"python": _version("python")} | {name: _installed(name) for name in _LIBRARIES}
    if endpoints := configured(os.environ):
        found["openai"] = f"endpoints {', '.join(endpoints)}"
    return {name: library for name, library in found.items() if library is not None}


def _installed(runtime: str) -> str | None:
    for package, distributions in _LIBRARIES[runtime].items():
        if find_spec(package) is not None:
            for distribution in distributions:
                with contextlib.suppress(PackageNotFoundError):
                    return f"{distributions[0]} {version(distribution)}"
            return f"{distributions[0]} of an unknown version"
    return None


def available_runtimes() -> dict[str, str]:
    """Name -> library and version of every runtime that works here; imports them all."""
    versions = {name: _version(name) for name in RUNTIMES}
    return {name: version for name, version in versions.items() if version is not None}


def _version(name: str) -> str | None:
    try:
        return open_runtime(name).version()
    except BackendError:
        return None


__all__ = ["RUNTIMES", "LoadedModel", "Runtime", "available_runtimes", "installed_runtimes", "open_runtime"]
