"""What every runtime offers: open a model, run it on arrays by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from compass_shared.errors import InferenceError

if TYPE_CHECKING:
    from compass_shared.values import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One input or output that a model declares."""

    name: str
    dtype: str
    """numpy's name of it, as in ``float32``; the runtime's own where numpy has none."""
    shape: tuple[int | None, ...]
    """None where any size will do."""


class LoadedModel(Protocol):
    """An open model; any number of threads may run it at once."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the input tensors, in the model's order."""

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            feed: One array per input name, of the dtype and shape that the model declares; never written to.

        Returns:
            One array per output name, which the caller owns.

        Raises:
            InferenceError: Naming the model, if it cannot run on this.
        """


class Runtime(Protocol):
    """A library that runs models."""

    @property
    def name(self) -> str:
        """The name that operators give it in ``pipeline.toml``."""

    def version(self) -> str:
        """Name and version of the library behind it."""

    def load(self, source: Path | str, *, threads: int = 1) -> LoadedModel:
        """Open a model.

        Args:
            source: The model's file; for ``python`` also ``"module:function"``.
            threads: Threads that one run may use.

        Raises:
            ModelLoadError: If it cannot be opened.
        """


def check_feed(model: str, input_names: Sequence[str], feed: Mapping[str, Array]) -> None:
    """Refuse a feed that leaves an input out or has one too many.

    Raises:
        InferenceError: Naming the model and its inputs.
    """
    if feed.keys() != set(input_names):
        raise InferenceError(model, f"takes {sorted(input_names)}, was given {sorted(feed)}")
