"""Pipelines: a DAG of operators with knobs, and the configs they span.

Two kinds of key name things in profiles and on the wire:

* a *variant* is one operator with one value for each of its own knobs,
  ``detect[model=det-tiny,side=320]`` (``crop`` where there are no knobs);
* a *config* is one value for every knob of every operator; its key joins the variants,
  ``prepare[...];detect[...];crop``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from compass_shared.errors import ConfigError
from compass_shared.model_ref import ModelRef
from compass_shared.values import KnobValue

REQUEST = "request"
"""Name under which an operator lists the request's own input."""

OPENAI = "openai"
"""The runtime whose models are endpoints rather than files."""
ENDPOINT_CLASS = "endpoint"
"""Speed class of operators that ask one: it is as fast wherever it is asked from."""

Knobs: TypeAlias = Mapping[str, KnobValue]
Config: TypeAlias = Mapping[str, Knobs]
"""Operator name -> knob name -> value, for every operator of the pipeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One logical step of a pipeline."""

    name: str
    inputs: tuple[str, ...]
    """Upstream operators, or ``"request"``."""
    runtime: str
    """``python``, ``onnx`` or ``tflite``: what loads its model; ``openai``: whose endpoint is asked."""
    function: str | None = None
    """``module:function``; a leading dot means a module of the bundle's own folder."""
    knobs: Mapping[str, tuple[KnobValue, ...]] = field(default_factory=dict)
    model: str | None = None
    """The model it always uses, if that is not a knob's choice."""
    model_knob: str | None = None
    """The knob whose value names the model."""
    model_when: Knobs = field(default_factory=dict)
    """Knob values under which ``model`` is needed at all (a skip knob)."""
    speed_class: str = "python"
    """What scales alike from one site to another: runtime, precision, memory- or compute-bound."""
    must_run_on: tuple[str, ...] = ()
    """Tiers (``device``, ``edge``, ``cloud``) or ``origin``, the only places it may run at; empty: anywhere.

    For privacy (raw pictures stay where they arise), licences, or hardware.
    """
    stateful: bool = False
    """Whether it keeps something from one request of a query to the next (a tracker, a stream's buffer)."""
    items: str | None = None
    """The upstream operator whose list it works through, item by item: a fan-out."""
    items_batch: int = 16
    """Most items that one call of its function gets."""
    codec_knob: str | None = None
    """The knob whose value names the codec of its output, see ``compass_shared.payloads``."""

    def model_for(self, knobs: Knobs) -> str | None:
        """Name of the model that these knobs select, or None."""
        return None if self.runtime == OPENAI else self._chosen(knobs)

    def endpoint_for(self, knobs: Knobs) -> str | None:
        """Name of the endpoint that these knobs select, or None."""
        return self._chosen(knobs) if self.runtime == OPENAI else None

    def _chosen(self, knobs: Knobs) -> str | None:
        if self.model_knob is not None:
            return str(knobs[self.model_knob])
        if self.model is None or any(knobs.get(name) != want for name, want in self.model_when.items()):
            return None
        return self.model

    def variants(self) -> Iterator[dict[str, KnobValue]]:
        """Every combination of this operator's own knob values, in file order."""
        for values in itertools.product(*self.knobs.values()):
            yield dict(zip(self.knobs, values, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model behind an OpenAI-compatible endpoint; each machine's environment says where it is."""

    model: str
    """What the endpoint calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """How the pipeline's output is scored against ground truth."""

    name: str
    function: str
    kind: str = "mean"
    """``mean``: of scores in [0, 1], one an input. ``ratio``: of counts, summed over the inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSet:
    """The labelled inputs that a bundle brings."""

    function: str
    splits: Mapping[str, int]
    assets: Mapping[str, str] = field(default_factory=dict)
    features: str | None = None
    """Function from an input's value to numbers that say what it is like."""
    sequences: bool = False
    """Whether an input is a clip: a list of consecutive requests of one stream, its truth in a list as long.

    The metric is then called with the list of outputs and the list of truths; operators start a clip without
    state. An output is None where a request was lost.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A validated DAG of operators with a quality metric; operators are in topological order."""

    name: str
    version: str
    description: str
    operators: tuple[Operator, ...]
    output: str
    metric: Metric | None = None
    """What the accuracy of a query's SLO is about."""
    extra_metrics: tuple[Metric, ...] = ()
    """Further qualities, measured beside it; an SLO may set a floor for each."""
    inputs: InputSet | None = None
    models: Mapping[str, ModelRef] = field(default_factory=dict)
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    fixed_split: Mapping[str, str] = field(default_factory=dict)
    """Operator -> tier: how a practitioner would split it by hand, the baseline that demos compare with."""
    digest: str = ""
    """SHA-256 of the declarative part; an assignment names the one it was planned for."""

    def operator(self, name: str) -> Operator:
        """The operator of that name.

        Raises:
            ConfigError: If there is none.
        """
        for operator in self.operators:
            if operator.name == name:
                return operator
        known = ", ".join(operator.name for operator in self.operators)
        raise ConfigError(f"pipeline {self.name!r} has no operator {name!r}; it has {known}")

    def configs(self) -> Iterator[dict[str, dict[str, KnobValue]]]:
        """Every config, the last operator's knobs varying fastest."""
        names = [operator.name for operator in self.operators]
        for choice in itertools.product(*(list(operator.variants()) for operator in self.operators)):
            yield dict(zip(names, choice, strict=True))

    def config_count(self) -> int:
        """How many configs there are."""
        count = 1
        for operator in self.operators:
            for values in operator.knobs.values():
                count *= len(values)
        return count

    @property
    def stateful(self) -> bool:
        """Whether any operator keeps state from request to request."""
        return any(operator.stateful for operator in self.operators)

    def config_key(self, config: Config) -> str:
        """Canonical text of a config: the key of accuracy tables."""
        return ";".join(variant_key(op.name, config.get(op.name, {})) for op in self.operators)

    def check_config(self, config: Config) -> None:
        """Refuse a config that names unknown operators, knobs or values, or leaves one out.

        Raises:
            ConfigError: Naming operator and knob.
        """
        known = {operator.name for operator in self.operators}
        if unknown := sorted(set(config) - known):
            raise ConfigError(f"pipeline {self.name!r} has no operator {unknown[0]!r}", field=unknown[0])
        for operator in self.operators:
            knobs = config.get(operator.name, {})
            if set(knobs) != set(operator.knobs):
                raise ConfigError(
                    f"operator {operator.name!r} has knobs {sorted(operator.knobs)}, got {sorted(knobs)}",
                    field=operator.name,
                )
            for name, value in knobs.items():
                allowed = operator.knobs[name]
                if not any(type(value) is type(choice) and value == choice for choice in allowed):
                    raise ConfigError(
                        f"knob {name!r} is one of {list(allowed)}, got {value!r}",
                        field=f"{operator.name}.{name}",
                    )


def variant_key(operator: str, knobs: Knobs) -> str:
    """Canonical text of one operator with its knob values: ``detect[model=det-tiny,side=320]``."""
    if not knobs:
        return operator
    inner = ",".join(f"{name}={knob_text(knobs[name])}" for name in sorted(knobs))
    return f"{operator}[{inner}]"


def knob_text(value: KnobValue) -> str:
    """Text of a knob's value in keys; ``pipeline_file`` sees to it that a knob's values differ in it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)
