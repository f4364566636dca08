"""Runtimes by the name that ``pipeline.toml`` gives them; a library is imported when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def available_runtimes() -> dict[str, str]:
    """Name -> library and version of every runtime that works here."""
    versions = {name: _version(name) for name in RUNTIMES}
    return {name: version for name, version in versions.items() if version is not None}


def _version(name: str) -> str | None:
    try:
        return open_runtime(name).version()
    except BackendError:
        return None


__all__ = ["RUNTIMES", "LoadedModel", "Runtime", "available_runtimes", "open_runtime"]
