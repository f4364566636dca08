"""Models that are Python: an installed function, or a file that operator code opens itself."""

from __future__ import annotations

import importlib
import inspect
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compass_agent.runtimes.base import LoadedModel, check_feed
from compass_shared.errors import InferenceError, ModelLoadError

if TYPE_CHECKING:
    from compass_shared.values import Array


class PythonRuntime:
    """Python itself."""

    name = "python"

    def version(self) -> str:
        """As in ``CPython 3.11.7``."""
        return f"{platform.python_implementation()} {platform.python_version()}"

    def load(self, source: Path | str, *, threads: int = 1) -> LoadedModel:  # noqa: ARG002  # one, always
        """Open ``"module:function"``, or a file.

        A function takes one array per parameter and returns a map of arrays. A file has no inputs: what it
        is good for only the operator's own code knows, which finds it among the model's assets.

        Raises:
            ModelLoadError: If there is no such function or file.
        """
        if isinstance(source, Path):
            if not source.is_file():
                raise ModelLoadError(f"{source} is not a file", model=source.name)
            return _FileModel(source.name)
        return _FunctionModel(source, _installed(source))


class _FunctionModel:
    """A function as a model."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._function = function
        self.input_names: tuple[str, ...] = tuple(inspect.signature(function).parameters)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        check_feed(self._name, self.input_names, feed)
        try:
            return dict(self._function(**feed))
        except Exception as error:
            raise InferenceError(self._name, f"{type(error).__name__}: {error}") from error


class _FileModel:
    """A verified file that cannot be run by itself."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.input_names: tuple[str, ...] = ()

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:  # noqa: ARG002
        raise InferenceError(self._name, "is a plain file: open model.assets['model'] instead of running it")


def _installed(reference: str) -> Callable[..., Any]:
    module, _, name = reference.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing runs code, which may raise anything
        raise ModelLoadError(f"{type(error).__name__}: {error}", model=reference) from error
    if not callable(function):
        raise ModelLoadError("is not a function", model=reference)
    found: Callable[..., Any] = function
    return found
