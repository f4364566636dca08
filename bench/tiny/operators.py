"""The operator of the tiny pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compass_shared.values import KnobValue, Model, Value


def hand_on(inputs: Mapping[str, Value], knobs: Mapping[str, KnobValue], model: Model | None) -> Value:  # noqa: ARG001
    """Return the input."""
    (value,) = inputs.values()
    return value
