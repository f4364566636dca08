"""Operators ready to run: code of the installed bundles, with the models that knobs select."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import numpy as np

from compass_agent.bundles import Bundle, ModelSource
from compass_agent.measure.telemetry import resident_bytes
from compass_agent.runtimes import LoadedModel, Runtime, open_runtime
from compass_agent.runtimes.openai import ChatEndpoint, open_endpoint
from compass_shared.errors import BackendError, ConfigError, InferenceError, ModelLoadError
from compass_shared.payloads import decode_payload, encode_payload
from compass_shared.pipeline import Knobs, Operator, Pipeline, variant_key
from compass_shared.values import State

if TYPE_CHECKING:
    from compass_shared.values import Array, ChatModel, Model, OperatorFunction, StatefulFunction, Value

Key = TypeVar("Key")
Made = TypeVar("Made")


class HostedModel:
    """A loaded model with the verified files that come with it."""

    __slots__ = ("assets", "input_names", "run")

    def __init__(self, loaded: LoadedModel, assets: Mapping[str, Path]) -> None:
        self.assets = assets
        self.input_names = loaded.input_names
        self.run: Callable[[Mapping[str, Array]], dict[str, Array]] = loaded.run


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundOperator:
    """One operator with knobs and model fixed: a function of its inputs."""

    operator: Operator
    knobs: Knobs
    function: OperatorFunction | StatefulFunction
    model: Model | None
    encoded: frozenset[str] = frozenset()
    """The pipeline's operators whose outputs a codec wrote down."""

    def __call__(self, inputs: Mapping[str, Value], state: State | None = None) -> Value:
        """Run it.

        Args:
            inputs: One value per upstream operator, as it was made: encoded if that one has a codec. They may
                be shared and read-only: code that wants to change one copies it.
            state: What a stateful operator kept from the stream's last request; None where there was none.
                Other operators have none.

        Returns:
            Its output, encoded if it has a codec.

        Raises:
            InferenceError: If its code or model failed, or what it returned is not a value.
        """
        try:
            decoded = {
                name: decode_payload(value) if name in self.encoded else value
                for name, value in inputs.items()
            }
            value = self._item_by_item(decoded) if self.operator.items else self._once(decoded, state)
            check_value(value)
            if self.operator.codec_knob is not None:
                value = encode_payload(value, str(self.knobs[self.operator.codec_knob]))
        except KeyboardInterrupt:
            raise
        # Whatever an operator raises ends this request alone, be it SystemExit or CancelledError.
        except BaseException as error:
            inner = isinstance(error, InferenceError)
            problem = error.problem if inner else f"{type(error).__name__}: {error}"  # type: ignore[attr-defined]
            raise InferenceError(self.operator.name, problem) from error
        return value

    def _once(self, inputs: Mapping[str, Value], state: State | None) -> Value:
        if self.operator.stateful:
            stateful = cast("StatefulFunction", self.function)
            return stateful(inputs, self.knobs, self.model, State() if state is None else state)
        return cast("OperatorFunction", self.function)(inputs, self.knobs, self.model)

    def _item_by_item(self, inputs: Mapping[str, Value]) -> list[Value]:
        """What it makes of every item, a batch at a time; of no list (a frame that was skipped) nothing."""
        name = self.operator.items
        assert name is not None
        items = inputs[name]
        if items is None:
            return []
        if not isinstance(items, list | tuple):
            raise TypeError(f"{name!r} made {type(items).__name__}, not a list of items")
        made: list[Value] = []
        for start in range(0, len(items), self.operator.items_batch):
            batch = items[start : start + self.operator.items_batch]
            out = self._once({**inputs, name: batch}, None)
            if not isinstance(out, list | tuple) or len(out) != len(batch):
                found = f"{len(out)} values" if isinstance(out, list | tuple) else type(out).__name__
                raise TypeError(f"it made {found} of {len(batch)} items; one each is wanted, in a list")
            made.extend(out)
        return made


class OperatorHost:
    """Runs the operators of installed bundles; any number of threads may use it at once.

    A model file is opened once, however many variants and pipelines run it.

    Args:
        bundles: What is installed.
        store: Where models come from.
        open_runtime: Runtime by name.
    """

    def __init__(
        self,
        bundles: Iterable[Bundle],
        store: ModelSource,
        *,
        open_runtime: Callable[[str], Runtime] = open_runtime,
    ) -> None:
        self._bundles = {bundle.pipeline.name: bundle for bundle in bundles}
        self._store = store
        self._variants = {
            (name, variant_key(operator.name, knobs)): (operator, knobs)
            for name, bundle in self._bundles.items()
            for operator in bundle.pipeline.operators
            for knobs in operator.variants()
        }
        self._runtimes: _Once[str, Runtime] = _Once(open_runtime)
        self._bound: _Once[tuple[str, str], BoundOperator] = _Once(self._bind)
        self._models: _Once[tuple[str, str, str], HostedModel] = _Once(self._host)
        self._endpoints: _Once[tuple[str, str], ChatEndpoint] = _Once(lambda key: open_endpoint(*key))
        """Endpoint and what it calls the model -> the endpoint."""
        self._loaded: dict[tuple[str, str], LoadedModel] = {}
        """Runtime and SHA-256 -> open model."""
        self._opened_bytes: dict[tuple[str, str], int] = {}
        """The same -> memory that opening it took."""
        self._load_lock = threading.Lock()
        self._closed = False

    @property
    def bundles(self) -> Mapping[str, Bundle]:
        """Pipeline name -> installed bundle."""
        return self._bundles

    def pipeline(self, name: str) -> Pipeline:
        """An installed pipeline.

        Raises:
            ConfigError: If it is not installed.
        """
        if name not in self._bundles:
            known = ", ".join(sorted(self._bundles)) or "none"
            raise ConfigError(f"pipeline {name!r} is not installed here; installed: {known}")
        return self._bundles[name].pipeline

    def bind(self, pipeline: str, operator: str, knobs: Knobs) -> BoundOperator:
        """The operator with these knob values, its model open. Blocks while a model is fetched and opened.

        Raises:
            ConfigError: If there is no such pipeline, operator or combination of knob values.
            ModelLoadError: If its model cannot be had or opened.
            BackendError: If the host was closed.
        """
        return self._bind_open((pipeline, variant_key(operator, knobs)))

    def run(self, pipeline: str, operator: str, inputs: Mapping[str, Value], knobs: Knobs) -> Value:
        """Run one operator once, see ``bind`` and ``BoundOperator``."""
        return self.bind(pipeline, operator, knobs)(inputs)

    def preload(self, pipeline: str, variants: Iterable[str]) -> None:
        """Fetch and open what these variants need, so that no request waits for it.

        Args:
            pipeline: Name of an installed pipeline.
            variants: Keys from ``pipeline.variant_key``.

        Raises:
            ConfigError: If a variant does not exist.
            ModelLoadError: If a model cannot be had or opened.
            BackendError: If the host was closed.
        """
        for variant in variants:
            self._bind_open((pipeline, variant))

    def opened_bytes(self, pipeline: str, operator: Operator, knobs: Knobs) -> int:
        """Memory that opening the model of a variant took, at least its file's size; 0 if none is open."""
        model = operator.model_for(knobs)
        if model is None:
            return 0
        ref = self.pipeline(pipeline).models[model]
        return self._opened_bytes.get((operator.runtime, ref.sha256), 0)

    def close(self) -> None:
        """Bind nothing any more: whatever runs operators one after the other ends after its present one."""
        self._closed = True
        for endpoint in self._endpoints.made():
            endpoint.close()

    def _bind_open(self, key: tuple[str, str]) -> BoundOperator:
        if self._closed:
            raise BackendError("the agent was closed")
        return self._bound[key]

    def _bind(self, key: tuple[str, str]) -> BoundOperator:
        name, variant = key
        pipeline = self.pipeline(name)
        if key not in self._variants:
            raise ConfigError(f"pipeline {pipeline.name!r} has no variant {variant!r}")
        operator, knobs = self._variants[key]
        model, endpoint = operator.model_for(knobs), operator.endpoint_for(knobs)
        hosted: Model | None = None
        if endpoint is not None:
            hosted = self._endpoints[endpoint, pipeline.endpoints[endpoint].model]
        elif model is not None:
            hosted = self._models[name, operator.runtime, model]
        return BoundOperator(
            operator=operator,
            knobs=MappingProxyType(knobs),
            function=self._bundles[name].functions.get(operator.name, ask if endpoint else run_model),
            model=hosted,
            encoded=frozenset(one.name for one in pipeline.operators if one.codec_knob is not None),
        )

    def _host(self, key: tuple[str, str, str]) -> HostedModel:
        name, runtime, model = key
        bundle = self._bundles[name]
        path = bundle.fetch(model, self._store)
        ref = bundle.pipeline.models[model]
        assets = {asset: bundle.fetch(other, self._store) for asset, other in ref.company.items()}
        return HostedModel(
            self._load(runtime, path, ref.sha256, model), MappingProxyType({"model": path, **assets})
        )

    def _load(self, runtime: str, path: Path, sha256: str, model: str) -> LoadedModel:
        # One at a time: opening a model takes a core and, for a moment, twice its memory.
        with self._load_lock:
            if (runtime, sha256) not in self._loaded:
                before = resident_bytes()
                try:
                    self._loaded[runtime, sha256] = self._runtimes[runtime].load(path)
                except ModelLoadError as error:
                    raise ModelLoadError(str(error), model=model) from error
                grown = resident_bytes() - before
                self._opened_bytes[runtime, sha256] = max(path.stat().st_size, grown)
            return self._loaded[runtime, sha256]


class _Once(Generic[Key, Made]):
    """Makes each thing once; others who want it meanwhile wait. What failed is tried again next time."""

    def __init__(self, make: Callable[[Key], Made]) -> None:
        self._make = make
        self._made: dict[Key, Future[Made]] = {}
        self._lock = threading.Lock()

    def made(self) -> list[Made]:
        """What was made so far."""
        with self._lock:
            futures = list(self._made.values())
        return [future.result() for future in futures if future.done()]

    def __getitem__(self, key: Key) -> Made:
        with self._lock:
            future = self._made.get(key)
            mine = future is None
            if future is None:
                future = self._made[key] = Future()
        if mine:
            try:
                future.set_result(self._make(key))
            except BaseException as error:
                with self._lock:
                    del self._made[key]
                future.set_exception(error)
        return future.result()


def run_model(inputs: Mapping[str, Value], knobs: Knobs, model: Model | None) -> Value:  # noqa: ARG001
    """What an operator without a function does: its model, from arrays to arrays.

    A model with one input takes the one upstream value; one with several takes a map of arrays by name.
    A model with one output gives its array, one with several gives a map.
    """
    assert model is not None, "pipeline_file refuses operators with neither function nor model"
    (value,) = inputs.values()
    feed = value if isinstance(value, Mapping) else {model.input_names[0]: value}
    outputs = model.run(feed)  # type: ignore[arg-type]  # the runtime refuses what is not an array
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def ask(inputs: Mapping[str, Value], knobs: Knobs, model: Model | None) -> Value:  # noqa: ARG001
    """What an ``openai`` operator without a function does: its one upstream text is the prompt."""
    (value,) = inputs.values()
    if not isinstance(value, str):
        raise TypeError(f"a prompt is text, not {type(value).__name__}")
    return cast("ChatModel", model).complete([{"role": "user", "content": value}])


_PLAIN = frozenset({type(None), bool, bytes, float, int, str})


def check_value(value: object) -> None:
    """Refuse what could not travel: an operator's output has to be the same here and at a worker.

    Raises:
        TypeError: Naming the type that is not a value.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise TypeError(f"arrays of {value.dtype} are not values")
    elif isinstance(value, dict):
        if others := [name for name in value if not isinstance(name, str)]:
            raise TypeError(f"keys of maps are text, not {type(others[0]).__name__}")
        _check_items(value.values())
    elif isinstance(value, (list, tuple)):
        _check_items(value)
    elif not isinstance(value, (*_PLAIN, np.number, np.bool_)):
        raise TypeError(f"{type(value).__name__} is not a value")


def _check_items(items: Collection[object]) -> None:
    """Check what is in a list or map; long ones of text or numbers pass at the speed of C."""
    if not _PLAIN.issuperset(map(type, items)):
        for item in items:
            check_value(item)
