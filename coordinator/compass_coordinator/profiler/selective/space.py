"""A pipeline's configs as arrays: their knobs, and the operator results that they share.

A *node* is one operator under one choice of its own knobs and of all knobs upstream of it: a result that
configs with the same node share on every input. Measuring a config on an input costs its nodes that are not
there yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compass_shared.errors import ConfigError
from compass_shared.pipeline import REQUEST, Pipeline, variant_key

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

MAX_CONFIGS = 3000
"""The model of scores keeps a covariance between all configs: 72 MB for so many, several times over."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """All configs of a pipeline."""

    keys: tuple[str, ...]
    """Config keys in product order."""
    levels: Indices
    """(configs, knobs) index of each knob's value; knobs with a single value are left out."""
    nodes: Indices
    """(configs, operators) node of each operator, in topological order."""
    node_variant: Indices
    """(nodes,) index into ``variants``."""
    variants: tuple[str, ...]
    """Keys of all operator variants, operator by operator."""

    def __len__(self) -> int:
        return len(self.keys)


def space_of(pipeline: Pipeline) -> Space:
    """The configs of a pipeline.

    Raises:
        ConfigError: If there are more than ``MAX_CONFIGS``.
    """
    count = pipeline.config_count()
    if count > MAX_CONFIGS:
        raise ConfigError(
            f"{count} configs are more than the {MAX_CONFIGS} that can be profiled together: "
            "give knobs fewer values",
            field="operators.knobs",
        )
    configs = list(pipeline.configs())
    upstream = _upstream(pipeline)
    variants: dict[str, int] = {}
    for operator in pipeline.operators:
        for knobs in operator.variants():
            variants.setdefault(variant_key(operator.name, knobs), len(variants))
    ids: dict[tuple[str, ...], int] = {}
    node_variant: list[int] = []
    nodes = np.empty((count, len(pipeline.operators)), dtype=np.intp)
    for row, config in enumerate(configs):
        names = {name: variant_key(name, knobs) for name, knobs in config.items()}
        for column, operator in enumerate(pipeline.operators):
            key = tuple(names[name] for name in upstream[operator.name])
            if key not in ids:
                ids[key] = len(ids)
                node_variant.append(variants[names[operator.name]])
            nodes[row, column] = ids[key]
    return Space(
        keys=tuple(pipeline.config_key(config) for config in configs),
        levels=_levels(pipeline, count),
        nodes=nodes,
        node_variant=np.array(node_variant, dtype=np.intp),
        variants=tuple(variants),
    )


def _upstream(pipeline: Pipeline) -> Mapping[str, tuple[str, ...]]:
    """Operator -> itself and all that it reads from, in topological order."""
    found: dict[str, tuple[str, ...]] = {}
    for operator in pipeline.operators:
        before = {name for source in operator.inputs if source != REQUEST for name in found[source]}
        found[operator.name] = tuple(
            other.name for other in pipeline.operators if other.name in before or other is operator
        )
    return found


def _levels(pipeline: Pipeline, count: int) -> Indices:
    sizes = [len(values) for operator in pipeline.operators for values in operator.knobs.values()]
    if not sizes:
        return np.zeros((count, 0), dtype=np.intp)
    levels = np.stack(np.unravel_index(np.arange(count), sizes), axis=1).astype(np.intp)
    return levels[:, np.array(sizes) > 1]
