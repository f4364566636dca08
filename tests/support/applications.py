"""Example bundles as tests use them: their modules alone, or with their real models at hand."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from compass_agent.bundles import Bundle, load_bundle
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_shared.errors import ModelLoadError
from compass_shared.model_cache import ModelCache, default_cache_dir
from compass_shared.values import KnobValue, State

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def module_of(example: str, name: str) -> Any:
    """A module of an example bundle, imported as a package of its own: no models, no pipeline file."""
    package = f"{example}_under_test"
    if package not in sys.modules:
        folder = EXAMPLES / example
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[package] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{package}.{name}")


class Application:
    """An installed example bundle with all its models on disk."""

    def __init__(self, bundle: Bundle, host: OperatorHost, files: Mapping[str, Path]) -> None:
        self.bundle = bundle
        self.host = host
        self.files = files
        """Model -> its verified file."""

    def module(self, name: str) -> Any:
        """One of its modules, as its operators see it."""
        return importlib.import_module(f"{self.bundle.package}.{name}")

    def run(self, operator: str, inputs: Mapping[str, Any], **knobs: KnobValue) -> Any:
        """One operator, once; one with state starts afresh."""
        bound = self.host.bind(self.bundle.pipeline.name, operator, knobs)
        return bound(inputs, State()) if bound.operator.stateful else bound(inputs)

    def play(
        self, requests: Sequence[Any], knobs: Mapping[str, Mapping[str, KnobValue]]
    ) -> list[dict[str, Any]]:
        """What every operator makes of each request of one stream.

        Args:
            requests: In order.
            knobs: Of each operator that has some.
        """
        pipeline = self.bundle.pipeline
        operators = {
            each.name: self.host.bind(pipeline.name, each.name, knobs.get(each.name, {}))
            for each in pipeline.operators
        }
        states = {name: State() for name in operators}
        made = []
        for request in requests:
            values: dict[str, Any] = {"request": request}
            for name, bound in operators.items():
                values[name] = bound({up: values[up] for up in bound.operator.inputs}, states[name])
            made.append(values)
        return made


Kind = TypeVar("Kind", bound=Application)


def application(example: str, kind: type[Kind]) -> Kind:
    """An example with its models; the test is skipped if they cannot be had."""
    bundle = load_bundle(EXAMPLES / example)
    store = ModelStore(ModelCache(default_cache_dir(os.environ)))
    try:
        files = {name: bundle.fetch(name, store) for name in bundle.pipeline.models}
    except ModelLoadError as error:
        pytest.skip(f"its models cannot be downloaded: {error}")
    return kind(bundle, OperatorHost([bundle], store), files)
