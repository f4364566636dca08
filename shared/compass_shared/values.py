"""What flows between operators, and how operator code looks.

A value is plain data: a numpy array, bytes (an encoded image or clip), text, numbers, or lists and
string-keyed maps of these. Values are what is framed onto the data plane (``compass_shared.framing``),
so operators never see sockets and never need Compass types in their own code.

An operator's function has the shape of ``OperatorFunction``:

    def detect(inputs, knobs, model):
        outputs = model.run({"x": preprocess(inputs["prepare"], knobs["side"])})
        return boxes_of(outputs)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, Union

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.generic]

Value: TypeAlias = Union[
    "Array", bytes, str, int, float, bool, "Sequence[Value]", "Mapping[str, Value]", None
]
KnobValue: TypeAlias = str | int | float | bool


class Model(Protocol):
    """A loaded model as operator code sees it."""

    @property
    def assets(self) -> Mapping[str, Path]:
        """Verified side files that the pipeline names for this model (a dictionary, labels)."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the input tensors, in the model's order."""

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            feed: One array per input name, of the dtype and shape the model declares.

        Returns:
            One array per output name.
        """


class ChatModel(Protocol):
    """The model of an ``openai`` operator as its code sees it."""

    def complete(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """The model's next message.

        Args:
            messages: ``{"role": ..., "content": ...}`` each.
            max_tokens: Most that it may write.
            temperature: 0 takes the likeliest token.
            seed: For endpoints that draw.
        """


class OperatorFunction(Protocol):
    """The Python of one operator."""

    def __call__(
        self, inputs: Mapping[str, Value], knobs: Mapping[str, KnobValue], model: Model | None
    ) -> Value:
        """Compute the operator's output.

        Args:
            inputs: One value per upstream operator; ``"request"`` is the request's own input.
            knobs: This operator's knob values.
            model: The model that the knobs select, or None where the operator has none.
        """


class State(dict[str, Any]):
    """What a stateful operator keeps from one request of a stream to the next; it starts empty.

    It holds whatever the operator's code puts into it and never leaves the process. It is gone after a move
    to another site, a change of the operator's knobs, or a new stream: code rebuilds it from what comes.
    """

    __slots__ = ("gap",)

    def __init__(self) -> None:
        super().__init__()
        self.gap = 0
        """Requests of the stream that were not seen here since the last one; negative for a late one."""


class StatefulFunction(Protocol):
    """The Python of an operator that keeps state; calls for one stream come one at a time."""

    def __call__(
        self,
        inputs: Mapping[str, Value],
        knobs: Mapping[str, KnobValue],
        model: Model | None,
        state: State,
    ) -> Value:
        """Compute the operator's output and change ``state`` in place; the rest as ``OperatorFunction``."""


class Example(NamedTuple):
    """One input with its ground truth."""

    name: str
    """Unique and stable within the input set."""
    value: Value
    """What a request would carry; of sequences a list of such."""
    truth: Value
    """What the metric compares the pipeline's output with; of sequences a list, one a request."""
    group: str
    """Stratum, such as the level of degradation."""
