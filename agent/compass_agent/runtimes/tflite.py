"""TensorFlow Lite models on LiteRT, else on tflite-runtime; the only module that imports either."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compass_agent.runtimes.base import LoadedModel, check_feed
from compass_shared.errors import InferenceError, ModelLoadError

if TYPE_CHECKING:
    from compass_shared.values import Array

try:
    from ai_edge_litert.interpreter import Interpreter

    LIBRARY = "ai-edge-litert"
except ImportError:
    from tflite_runtime.interpreter import Interpreter

    LIBRARY = "tflite-runtime"


class TfliteRuntime:
    """LiteRT or tflite-runtime on the CPU.

    Raises:
        ModelLoadError: If tflite-runtime meets a numpy that it was not built for.
    """

    name = "tflite"

    def __init__(self) -> None:
        # It would import, and fail at the first interpreter with a message about neither.
        if LIBRARY == "tflite-runtime" and int(np.__version__.partition(".")[0]) >= 2:
            raise ModelLoadError(
                f"tflite-runtime needs numpy<2, here is {np.__version__}: "
                "pip install 'compass-agent[tflite]', or [tflite-runtime] in an environment of its own"
            )

    def version(self) -> str:
        """As in ``ai-edge-litert 2.0.0``."""
        return f"{LIBRARY} {version(LIBRARY)}"

    def load(self, source: Path | str, *, threads: int = 1) -> LoadedModel:
        """Open a model file.

        Inputs and outputs go by the names of the model's signature where it has exactly one, else by those
        of the tensors.

        Raises:
            ModelLoadError: If the interpreter does not take it.
        """
        path = Path(source)
        try:
            return _TfliteModel(path.name, lambda: _Instance(path, threads))
        except Exception as error:  # ValueError, RuntimeError and OSError, without a pattern
            raise ModelLoadError(f"{LIBRARY} cannot open it: {error}", model=path.name) from error


class _TfliteModel:
    """As many interpreters as calls ran at once: one interpreter serves one thread at a time."""

    def __init__(self, name: str, open_instance: Callable[[], _Instance]) -> None:
        first = open_instance()
        self._name = name
        self._open = open_instance
        self._idle = deque([first])
        self.input_names: tuple[str, ...] = tuple(first.inputs)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        check_feed(self._name, self.input_names, feed)
        try:
            instance = self._take()
            outputs = instance.run(feed)
        except Exception as error:  # the instance may be half resized: it is not used again
            raise InferenceError(self._name, str(error)) from error
        self._idle.append(instance)
        return outputs

    def _take(self) -> _Instance:
        try:
            return self._idle.pop()
        except IndexError:
            return self._open()


class _Instance:
    """One interpreter; its tensors are allocated for the last input's shape."""

    def __init__(self, path: Path, threads: int) -> None:
        self._interpreter: Any = Interpreter(model_path=str(path), num_threads=threads)
        # A network that takes any size may be unable to run at the size that stands in its file.
        self._allocated = not any(
            -1 in tensor["shape_signature"] for tensor in self._interpreter.get_input_details()
        )
        if self._allocated:
            self._interpreter.allocate_tensors()
        inputs, outputs = _tensors(self._interpreter)
        self.inputs = {name: int(tensor["index"]) for name, tensor in inputs.items()}
        self._outputs = {name: int(tensor["index"]) for name, tensor in outputs.items()}
        self._shapes = {name: tuple(tensor["shape"]) for name, tensor in inputs.items()}

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self._fit({name: array.shape for name, array in feed.items()})
        for name, index in self.inputs.items():
            self._interpreter.set_tensor(index, feed[name])
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

    def _fit(self, shapes: dict[str, tuple[int, ...]]) -> None:
        if self._allocated and shapes == self._shapes:
            return
        for name, shape in shapes.items():
            if shape != self._shapes[name]:
                self._interpreter.resize_tensor_input(self.inputs[name], shape)
        self._interpreter.allocate_tensors()
        self._allocated, self._shapes = True, shapes


def _tensors(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name -> details of inputs and outputs."""
    signatures = interpreter.get_signature_list()
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        return dict(runner.get_input_details()), dict(runner.get_output_details())
    return (
        {tensor["name"]: tensor for tensor in interpreter.get_input_details()},
        {tensor["name"]: tensor for tensor in interpreter.get_output_details()},
    )
