"""The tables of ``pipeline.toml`` as they are written; ``pipeline_checks`` says what they may hold."""

from __future__ import annotations

from typing import Any

import msgspec

from compass_shared.values import KnobValue


class OperatorTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[operators]]`` table."""

    name: str
    inputs: tuple[str, ...]
    runtime: str
    function: str | None = None
    knobs: dict[str, tuple[KnobValue, ...]] = {}
    model: str | None = None
    model_knob: str | None = None
    model_when: dict[str, KnobValue] = {}
    speed_class: str = "python"
    must_run_on: str | tuple[str, ...] = ()
    stateful: bool = False
    items: str | None = None
    items_batch: int = 16
    codec_knob: str | None = None

    @property
    def places(self) -> tuple[str, ...]:
        """``must_run_on`` as a list."""
        return (self.must_run_on,) if isinstance(self.must_run_on, str) else self.must_run_on


class MetricTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[metric]`` table, or one of ``[[extra_metrics]]``."""

    name: str
    function: str
    kind: str = "mean"


class InputsTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[inputs]`` table."""

    function: str
    splits: dict[str, int]
    assets: dict[str, str] = {}
    features: str | None = None
    sequences: bool = False


class EndpointTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[endpoints.NAME]`` table."""

    model: str


class PipelineDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: int
    name: str
    version: str
    operators: tuple[OperatorTable, ...]
    output: str
    description: str = ""
    metric: MetricTable | None = None
    extra_metrics: tuple[MetricTable, ...] = ()
    inputs: InputsTable | None = None
    fixed_split: dict[str, str] = {}
    models: dict[str, dict[str, Any]] = {}
    endpoints: dict[str, EndpointTable] = {}
