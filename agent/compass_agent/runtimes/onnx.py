"""ONNX models (and ORT ones) on onnxruntime; the only module that imports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from compass_agent.runtimes.base import LoadedModel, Tensor, check_feed
from compass_shared.errors import InferenceError, ModelLoadError

if TYPE_CHECKING:
    from compass_shared.values import Array

CPU = "CPUExecutionProvider"

_FATAL = 4  # everything less severe is raised as an exception as well
ort.set_default_logger_severity(_FATAL)


class OnnxRuntime:
    """onnxruntime with one thread a call, so that as many calls as cores run side by side.

    Args:
        providers: Execution providers in order of preference. They may change outputs slightly, so a
            pipeline that wants another than the CPU's offers it as a knob value.

    Raises:
        ModelLoadError: If a provider is not part of the installed onnxruntime.
    """

    name = "onnx"

    def __init__(self, providers: Sequence[str] = (CPU,)) -> None:
        known = ort.get_available_providers()
        if missing := [provider for provider in providers if provider not in known]:
            raise ModelLoadError(f"this onnxruntime has no {missing[0]}; it has {', '.join(known)}")
        self._providers = list(providers)

    def version(self) -> str:
        """As in ``onnxruntime 1.20.0``."""
        return f"onnxruntime {ort.__version__}"

    def load(self, source: Path | str, *, threads: int = 1) -> LoadedModel:
        """Open a model file; its name does not matter.

        Raises:
            ModelLoadError: If onnxruntime does not take it.
        """
        path = Path(source)
        try:
            return _OnnxModel(
                path.name, ort.InferenceSession(str(path), _options(path, threads), self._providers)
            )
        except Exception as error:  # onnxruntime's exceptions share no base
            raise ModelLoadError(f"onnxruntime cannot open it: {error}", model=path.name) from error


class _OnnxModel:
    """One session, which is thread-safe."""

    def __init__(self, name: str, session: Any) -> None:
        self._name = name
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        self.input_names: tuple[str, ...] = tuple(item.name for item in session.get_inputs())

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        check_feed(self._name, self.input_names, feed)
        try:
            arrays = self._session.run(self._outputs, dict(feed))
        except Exception as error:
            raise InferenceError(self._name, str(error)) from error
        for name, array in zip(self._outputs, arrays, strict=True):
            if not isinstance(array, np.ndarray):
                raise InferenceError(self._name, f"output {name!r} is a {type(array).__name__}, not a tensor")
        return dict(zip(self._outputs, arrays, strict=True))


_DTYPES = {"float": "float32", "double": "float64"}


def signature(path: Path) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs that a model file declares.

    Raises:
        ModelLoadError: If onnxruntime does not take it.
    """
    try:
        session = ort.InferenceSession(str(path), _options(path, 1), [CPU])
    except Exception as error:
        raise ModelLoadError(f"onnxruntime cannot open it: {error}", model=path.name) from error
    return _tensors(session.get_inputs()), _tensors(session.get_outputs())


def _tensors(declared: Sequence[Any]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name=entry.name,
            dtype=_dtype(entry.type),
            shape=tuple(side if isinstance(side, int) and side > 0 else None for side in entry.shape),
        )
        for entry in declared
    )


def _dtype(text: str) -> str:
    """``tensor(float)`` -> ``float32``."""
    inner = text.removeprefix("tensor(").removesuffix(")")
    return _DTYPES.get(inner, inner)


def _options(path: Path, threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL
    # Spinning threads take the cores from other sessions: two pools of two ran at 0.62 of one's speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if _is_ort_format(path):
        # Files in the model cache have no suffix to tell it by.
        options.add_session_config_entry("session.load_model_format", "ORT")
    return options


def _is_ort_format(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8)[4:] == b"ORTM"
