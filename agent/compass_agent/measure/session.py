"""Scores configs on inputs one job at a time, as a profiler asks for them.

What goes wrong with one config on one input (an operator fails, its model cannot be opened, the metric gives
what is no score) leaves that config without a score there, with the reason; nothing else is lost by it.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
import numpy as np

from compass_agent.bundles import Bundle, ModelSource
from compass_agent.inputs import data_sha256
from compass_agent.measure.accuracy import used_models
from compass_agent.measure.clips import is_sequence, requests_of
from compass_agent.measure.features import features_of
from compass_agent.measure.results_cache import Result, ResultsCache
from compass_agent.measure.scoring import Metrics, Outcome
from compass_agent.measure.walk import Walk, request_of
from compass_agent.operators import OperatorHost
from compass_agent.runtimes import installed_runtimes
from compass_shared import __version__
from compass_shared.errors import ConfigError, InferenceError, ModelLoadError
from compass_shared.framing import framed_size
from compass_shared.measured import Done, InputInfo, Job, Ready, Score
from compass_shared.pipeline import Config, Knobs, Operator, variant_key
from compass_shared.values import Example, State, Value


class MeasuringSession:
    """One bundle with the inputs of one split, and what was found out so far.

    Args:
        bundle: What is measured.
        examples: Inputs of the split.
        split: Its name.
        host: Runs the bundle's operators.
        cache: Keeps their results.

    Raises:
        ConfigError: If the bundle has no metric, or one cannot be imported.
    """

    def __init__(
        self,
        bundle: Bundle,
        examples: Sequence[Example],
        *,
        split: str,
        host: OperatorHost,
        cache: ResultsCache,
    ) -> None:
        self._metrics = Metrics(bundle)
        self._bundle = bundle
        self._pipeline = bundle.pipeline
        self._examples = examples
        self._split = split
        self._host = host
        self._cache = cache
        self._identities = _Identities(bundle)
        self._knobs = {
            variant_key(operator.name, knobs): knobs
            for operator in self._pipeline.operators
            for knobs in operator.variants()
        }
        self._warm: set[str] = set()
        self._warm_up_cpu_s = 0.0
        self._scored: dict[tuple[int, bytes], dict[str, Outcome]] = {}
        """Input and digest of an output -> by metric its score, or why it has none."""
        self._request = lru_cache(maxsize=4)(lambda index: request_of(bundle.pipeline, examples[index]))

    def ready(self) -> Ready:
        """What is measured here.

        Raises:
            ConfigError: If the bundle's features are wrong.
            MessageError: If an input cannot be framed.
        """
        features = features_of(self._examples, self._bundle.features(), sequences=is_sequence(self._pipeline))
        return Ready(
            pipeline=self._pipeline.name,
            digest=self._pipeline.digest,
            code_sha256=self._bundle.code_sha256,
            data_sha256=self._identities.data_sha256,
            split=self._split,
            metric=self._metrics.first,
            kind=self._metrics.kinds[self._metrics.first],
            extra_metrics={name: self._metrics.kinds[name] for name in self._metrics.others},
            inputs=tuple(
                self._info(example, found) for example, found in zip(self._examples, features, strict=True)
            ),
            models=used_models(self._pipeline),
            runtimes=self._identities.runtimes,
            provenance={
                "compass": __version__,
                "runtimes": installed_runtimes(),
                "numpy": np.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
            },
        )

    def measure(self, job: Job) -> Done:
        """Carry out one job.

        Raises:
            ConfigError: If there is no such input.
            MessageError: If the input cannot be framed.
        """
        if not 0 <= job.input < len(self._examples):
            raise ConfigError(f"there is no input {job.input}; there are {len(self._examples)}")
        walk = Walk(
            self._pipeline,
            run=self._run,
            cache=self._cache,
            identity=self._identities.of,
            before_run=self._warm_up,
        )
        self._warm_up_cpu_s = 0.0
        outcomes = {key: self._outcome(walk, job.input, key) for key in job.configs}
        first = {key: found[self._metrics.first] for key, found in outcomes.items()}
        return Done(
            id=job.id,
            input=job.input,
            scores={key: _score(found) for key, found in first.items()},
            others={
                name: {key: _score(found[name]) for key, found in outcomes.items()}
                for name in self._metrics.others
            },
            problems={key: found for key, found in first.items() if isinstance(found, str)},
            runs=tuple(walk.runs),
            recalled=tuple(walk.recalled),
            reused=walk.reused,
            warm_up_cpu_s=self._warm_up_cpu_s,
            notices=(*self._cache.take_notices(), *self._metrics.take_notices()),
        )

    def _info(self, example: Example, features: tuple[float, ...]) -> InputInfo:
        sizes = tuple(framed_size(value) for value in requests_of(self._pipeline, example))
        return InputInfo(
            name=example.name,
            group=example.group,
            features=features,
            size_bytes=sum(sizes),
            request_bytes=sizes if is_sequence(self._pipeline) else (),
        )

    def _outcome(self, walk: Walk, index: int, key: str) -> dict[str, Outcome]:
        config = self._config(key)
        if config is None:
            return self._metrics.none(f"{self._pipeline.name!r} has no such config")
        output = walk.output(self._request(index), config)
        if output.problem is not None:
            return self._metrics.none(f"input {self._examples[index].name!r}: {output.problem}")
        if (index, output.digest) not in self._scored:
            self._scored[index, output.digest] = self._scores(walk, index, output)
        return self._scored[index, output.digest]

    def _scores(self, walk: Walk, index: int, output: Result) -> dict[str, Outcome]:
        return self._metrics.scores(walk.value(self._pipeline.output, output), self._examples[index])

    def _config(self, key: str) -> Config | None:
        """The config of a key, None if there is none."""
        operators = self._pipeline.operators
        variants = key.split(";")
        if len(variants) != len(operators):
            return None
        config = {}
        for operator, variant in zip(operators, variants, strict=True):
            if variant not in self._knobs or variant.partition("[")[0] != operator.name:
                return None
            config[operator.name] = self._knobs[variant]
        return config

    def _run(
        self, operator: Operator, inputs: Mapping[str, Value], knobs: Knobs, state: State | None = None
    ) -> Value:
        try:
            if state is not None:
                return self._host.bind(self._pipeline.name, operator.name, knobs)(inputs, state)
            return self._host.run(self._pipeline.name, operator.name, inputs, knobs)
        except ModelLoadError as error:
            # Files were verified before the first job: this one is not what its runtime can open.
            raise InferenceError(operator.name, str(error)) from error

    def _warm_up(self, operator: Operator, inputs: Mapping[str, Value], knobs: Knobs) -> None:
        """Call a variant once before it is timed: the first call opens its model and fills its caches."""
        variant = variant_key(operator.name, knobs)
        if variant in self._warm:
            return
        self._warm.add(variant)
        started_s = time.thread_time()
        try:
            self._run(operator, inputs, knobs)
        except InferenceError:
            pass  # it will fail again, and be reported then
        finally:
            self._warm_up_cpu_s += time.thread_time() - started_s


def _score(found: Outcome) -> Score | None:
    return found if isinstance(found, Score) else None


class _Identities:
    """Everything that an operator's output follows from, beside its inputs."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.data_sha256 = data_sha256(bundle.folder)
        installed = installed_runtimes()
        self.runtimes = {
            operator.runtime: installed[operator.runtime]
            for operator in bundle.pipeline.operators
            if operator.runtime in installed
        }
        self._known: dict[str, str] = {}

    def of(self, operator: Operator, knobs: Knobs) -> str:
        """A digest; of models and their assets the SHA-256 enters, not the name."""
        variant = variant_key(operator.name, knobs)
        if variant not in self._known:
            models = self._bundle.pipeline.models
            model = operator.model_for(knobs)
            parts: list[object] = [
                variant,
                operator.function,
                self.runtimes.get(operator.runtime),
                (self._bundle.code_sha256, self.data_sha256),
            ]
            if model is not None:
                assets = {name: models[other].sha256 for name, other in models[model].assets.items()}
                parts += [models[model].sha256, assets]
            encoded = msgspec.json.encode(parts, order="deterministic")
            self._known[variant] = hashlib.sha256(encoded).hexdigest()
        return self._known[variant]


def fetch_models(bundle: Bundle, store: ModelSource) -> None:
    """Verify every model that some config uses, before configs are scored 0 for want of one.

    Raises:
        ModelLoadError: If one cannot be had.
    """
    for name in used_models(bundle.pipeline):
        bundle.fetch(name, store)
        for asset in bundle.pipeline.models[name].assets.values():
            bundle.fetch(asset, store)
