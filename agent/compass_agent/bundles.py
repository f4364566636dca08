"""Pipeline bundles: a folder with ``pipeline.toml`` and the Python of its own operators.

The folder is imported as a package under a name that follows from its path and code, so that two bundles
may both have an ``operators.py``, and a bundle that changed on disk is a new package.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from compass_shared.errors import ConfigError
from compass_shared.model_ref import ModelRef
from compass_shared.pipeline import Pipeline
from compass_shared.pipeline_file import FILE_NAME, load_pipeline

if TYPE_CHECKING:
    from compass_shared.values import Example, OperatorFunction, Value


class ModelSource(Protocol):
    """Where verified models come from; ``compass_agent.models.ModelStore`` is one."""

    def fetch(self, ref: ModelRef, *, name: str = "", base: Path | None = None) -> Path:
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

        Raises:
            ConfigError: If the pipeline has none, or it cannot be imported.
        """
        if self.pipeline.metric is None:
            raise ConfigError("the pipeline has no metric", file=self.folder / FILE_NAME, field="metric")
        return _function(self.package, self.pipeline.metric.function, self.folder, "metric.function")

    def features(self) -> Callable[[Value], Any] | None:
        """What tells inputs apart, ``(value) -> numbers``; None if the pipeline leaves it to Compass.

        Raises:
            ConfigError: If it cannot be imported.
        """
        inputs = self.pipeline.inputs
        if inputs is None or inputs.features is None:
            return None
        return _function(self.package, inputs.features, self.folder, "inputs.features")

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
        make = _function(self.package, inputs.function, self.folder, "inputs.function")
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
        return store.fetch(self.pipeline.models[model], name=model, base=self.folder)


def load_bundle(folder: Path) -> Bundle:
    """Load a bundle and import the code of its operators.

    Raises:
        ConfigError: If the file is wrong, or an operator's function cannot be imported.
    """
    folder = folder.resolve()
    pipeline = load_pipeline(folder)
    code_sha256 = _code_sha256(folder)
    package = _import_folder(folder, pipeline.name, code_sha256)
    functions = {
        operator.name: _function(package, operator.function, folder, f"operators.{operator.name}.function")
        for operator in pipeline.operators
        if operator.function is not None
    }
    return Bundle(
        folder=folder, pipeline=pipeline, code_sha256=code_sha256, package=package, functions=functions
    )


def _code_sha256(folder: Path) -> str:
    """Digest of names and content, alike on every machine."""
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.rglob("*.py")):
            code = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{code}\n".encode())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=error.filename) from error
    return digest.hexdigest()


def _import_folder(folder: Path, pipeline: str, code_sha256: str) -> str:
    """Make the folder a package; its modules are imported when asked for."""
    key = hashlib.sha256(f"{folder}\0{code_sha256}".encode()).hexdigest()[:12]
    name = f"compass_bundle_{pipeline.replace('-', '_')}_{key}"
    if name in sys.modules:
        return name
    init = folder / "__init__.py"
    if init.exists():
        spec = spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
        assert spec is not None, "a .py file always has a loader"
    else:
        spec = ModuleSpec(name, loader=None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    sys.modules[name] = module_from_spec(spec)
    try:
        if spec.loader is not None:
            spec.loader.exec_module(sys.modules[name])
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"cannot be imported: {type(error).__name__}: {error}", file=init) from error
    return name


def _function(package: str, reference: str, folder: Path, field: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; a leading dot means the bundle's own package."""
    module_name, _, name = reference.partition(":")
    file = folder / FILE_NAME
    if module_name.startswith("."):
        module_name = f"{package}{module_name}".rstrip(".")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs code, which may raise anything
        problem = f"{reference!r} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError(problem, file=file, field=field) from error
    function = getattr(module, name, None)
    if not callable(function):
        problem = (
            f"{reference!r} is not a function" if hasattr(module, name) else f"there is no {reference!r}"
        )
        raise ConfigError(problem, file=file, field=field)
    found: Callable[..., Any] = function
    return found
