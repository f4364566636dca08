"""Pipeline bundles: a folder with ``pipeline.toml`` and the Python of its own operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from compass_agent.bundle_code import code_sha256_of, function_of, import_folder
from compass_shared.errors import ConfigError
from compass_shared.model_ref import ModelRef
from compass_shared.pipeline import Pipeline
from compass_shared.pipeline_file import FILE_NAME, load_pipeline

if TYPE_CHECKING:
    from compass_shared.values import Example, OperatorFunction, Value


class ModelSource(Protocol):
    """Where verified models come from; ``compass_agent.models.ModelStore`` is one."""

    def fetch(
        self,
        ref: ModelRef,
        *,
        name: str = "",
        base: Path | None = None,
        others: Mapping[str, ModelRef] | None = None,
    ) -> Path:
        """Path of the model's verified file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An installed pipeline."""

    folder: Path
    pipeline: Pipeline
    code_sha256: str
    """Over every Python file below the folder."""
    package: str
    """Name that the folder is imported under."""
    functions: Mapping[str, OperatorFunction]
    """Operator -> its function; operators that only run their model have none."""

    def metric(self) -> Callable[[Value, Value], Any]:
        """The metric: ``(output, truth) -> score``, or two counts; see ``measure.scoring``.

        Of sequences it takes the list of a clip's outputs, None where one was lost, and the list of truths.

        Raises:
            ConfigError: If the pipeline has none, or it cannot be imported.
        """
        if self.pipeline.metric is None:
            raise ConfigError("the pipeline has no metric", file=self.folder / FILE_NAME, field="metric")
        return function_of(self.package, self.pipeline.metric.function, self.folder, "metric.function")

    def extra_metrics(self) -> dict[str, Callable[[Value, Value], Any]]:
        """The further metrics by name, called like the metric.

        Raises:
            ConfigError: If one cannot be imported.
        """
        return {
            metric.name: function_of(
                self.package, metric.function, self.folder, f"extra_metrics.{metric.name}"
            )
            for metric in self.pipeline.extra_metrics
        }

    def features(self) -> Callable[[Value], Any] | None:
        """What tells inputs apart, ``(value) -> numbers``; None if the pipeline leaves it to Compass.

        Raises:
            ConfigError: If it cannot be imported.
        """
        inputs = self.pipeline.inputs
        if inputs is None or inputs.features is None:
            return None
        return function_of(self.package, inputs.features, self.folder, "inputs.features")

    def examples(self, split: str, store: ModelSource) -> Sequence[Example]:
        """The labelled inputs of one split, the same ones every time.

        Raises:
            ConfigError: If there is no such split, or what makes it fails.
            ModelLoadError: If an asset cannot be had.
        """
        inputs, file = self.pipeline.inputs, self.folder / FILE_NAME
        if inputs is None or split not in inputs.splits:
            known = ", ".join(inputs.splits) if inputs else "none"
            raise ConfigError(f"there is no split {split!r}; there are: {known}", file=file, field="inputs")
        make = function_of(self.package, inputs.function, self.folder, "inputs.function")
        assets = {name: self.fetch(model, store) for name, model in inputs.assets.items()}
        try:
            examples: Sequence[Example] = make(split, assets)
        except Exception as error:
            raise ConfigError(
                f"{inputs.function} failed: {type(error).__name__}: {error}", file=file, field="inputs"
            ) from error
        if len(examples) != inputs.splits[split]:
            raise ConfigError(
                f"should have {inputs.splits[split]} examples, {inputs.function} made {len(examples)}",
                file=file,
                field=f"inputs.splits.{split}",
            )
        return examples

    def fetch(self, model: str, store: ModelSource) -> Path:
        """Verified file of one of the pipeline's models.

        Raises:
            ModelLoadError: If it cannot be had.
        """
        models = self.pipeline.models
        return store.fetch(models[model], name=model, base=self.folder, others=models)


def load_bundle(folder: Path) -> Bundle:
    """Load a bundle and import the code of its operators.

    Raises:
        ConfigError: If the file is wrong, or an operator's function cannot be imported.
    """
    folder = folder.resolve()
    pipeline = load_pipeline(folder)
    code_sha256 = code_sha256_of(folder)
    package = import_folder(folder, pipeline.name, code_sha256)
    functions = {
        operator.name: function_of(package, operator.function, folder, f"operators.{operator.name}.function")
        for operator in pipeline.operators
        if operator.function is not None
    }
    return Bundle(
        folder=folder, pipeline=pipeline, code_sha256=code_sha256, package=package, functions=functions
    )
