"""Runtimes whose models take several threads a call: to measure what that would give, never to serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compass_agent.runtimes.base import LoadedModel, Runtime


class ThreadedRuntime:
    """Another runtime, with a number of threads that whoever loads a model cannot choose.

    Args:
        inner: What opens and runs models.
        threads: Threads that one run may use.
    """

    def __init__(self, inner: Runtime, threads: int) -> None:
        self._inner = inner
        self._threads = threads

    @property
    def name(self) -> str:
        """The inner one's."""
        return self._inner.name

    def version(self) -> str:
        """The inner one's."""
        return self._inner.version()

    def load(self, source: Path | str, *, threads: int = 1) -> LoadedModel:  # noqa: ARG002  # see above
        """Open a model with the threads of this runtime."""
        return self._inner.load(source, threads=self._threads)


def threaded(open_runtime: Callable[[str], Runtime], threads: int) -> Callable[[str], Runtime]:
    """The same runtimes by name, with several threads a call."""
    return lambda name: ThreadedRuntime(open_runtime(name), threads)
