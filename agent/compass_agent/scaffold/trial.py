"""Running a new bundle once, so that what does not fit shows before anything is profiled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compass_agent.bundles import load_bundle
from compass_agent.operators import OperatorHost
from compass_shared.errors import CompassError, ConfigError
from compass_shared.model_ref import ModelRef

if TYPE_CHECKING:
    from compass_shared.values import Value


class _InPlace:
    """Models as they lie in the bundle."""

    def fetch(
        self,
        ref: ModelRef,
        *,
        name: str = "",  # noqa: ARG002
        base: Path | None = None,
        others: Mapping[str, ModelRef] | None = None,  # noqa: ARG002
    ) -> Path:
        """Path of the file."""
        assert base is not None, "a bundle names its folder"
        return base / ref.origin.location


def try_bundle(folder: Path) -> None:
    """Push the first held-out input through a bundle, under its first config, and score it.

    Raises:
        ConfigError: If the model does not open from where it now lies, or does not take the input.
    """
    store = _InPlace()
    try:
        bundle = load_bundle(folder)
        pipeline = bundle.pipeline
        host = OperatorHost([bundle], store)
        config = next(pipeline.configs())
        bound = [host.bind(pipeline.name, each.name, config[each.name]) for each in pipeline.operators]
    except CompassError as error:
        raise ConfigError(
            f"the model does not open where it was copied to: {error}. If it keeps its weights in files "
            "beside it, write it as one file first (onnx.save without external data)",
            field="--model",
        ) from error
    try:
        example = bundle.examples("heldout", store)[0]
        made: dict[str, Value] = {"request": example.value}
        for each in bound:
            made[each.operator.name] = each({name: made[name] for name in each.operator.inputs})
        bundle.metric()(made[pipeline.output], example.truth)
    except Exception as error:  # it is the new bundle's code, on a model that nobody knows
        raise ConfigError(
            f"the model does not take the inputs: {error}. See --size and --normalise for pictures; .npy "
            "files are of the model's own shape, with or without the batch",
            field="--inputs",
        ) from error
