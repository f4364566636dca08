"""What every config of read-text does on every page, measured once and kept: the truth of the bench.

The file holds each distinct operator run of a page (an operator variant on inputs of one content) with its
time, and the score of each distinct output. Which runs a config consists of follows from what they read.
Shapes: N inputs, C configs in the order of ``Pipeline.configs``, O operators, R runs of all inputs.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_shared.measured import InputInfo
from compass_shared.pipeline import REQUEST, Pipeline, variant_key

SCHEMA = 1


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One input; a content is named by its number on this page, the request's is 0."""

    info: InputInfo
    variant: list[int]
    """Per run: index into ``Kept.variants``."""
    read: list[list[int]]
    """Per run: contents of the operator's inputs, in their order."""
    made: list[int]
    """Per run: content of its output."""
    cpu_us: list[int]
    wall_us: list[int]
    size_bytes: list[int]
    """Per content: encoded size."""
    scores: dict[int, float]
    """Content of a final output -> score."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    schema: int = SCHEMA
    kind: str = "profiler-truth"
    pipeline: str
    provenance: dict[str, Any]
    variants: list[str]
    pages: list[Page]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """Scores and runs of all configs on all inputs."""

    pipeline: Pipeline
    inputs: tuple[InputInfo, ...]
    configs: tuple[str, ...]
    variants: tuple[str, ...]
    scores: Floats
    """(N, C) in [0, 1]; the accuracy of a config is the mean over inputs."""
    run_of: Indices
    """(N, C, O): the run of every operator of a config on an input."""
    run_variant: Indices
    """(R,) index into ``variants``."""
    run_cpu_s: Floats
    run_wall_s: Floats
    run_bytes: Indices
    """(R,) encoded size of the output."""
    run_input: Indices
    """(R,)."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> Floats:
        """(C,)."""
        return np.asarray(self.scores.mean(axis=0))

    @property
    def exhaustive_s(self) -> float:
        """Operator-seconds of all configs on all inputs, where nothing is reused."""
        return float(self.run_cpu_s[self.run_of].sum())

    @property
    def reused_s(self) -> float:
        """The same, where no operator runs twice on inputs of the same content."""
        return float(self.run_cpu_s.sum())


def variants_of(pipeline: Pipeline) -> tuple[str, ...]:
    """Variant keys of all operators, in file order."""
    return tuple(variant_key(op.name, knobs) for op in pipeline.operators for knobs in op.variants())


def choices_of(pipeline: Pipeline) -> Indices:
    """(C, O): the variant of every operator of a config, as an index into ``variants_of``."""
    counts = [len(list(op.variants())) for op in pipeline.operators]
    starts = np.cumsum([0, *counts[:-1]])
    own = np.unravel_index(np.arange(int(np.prod(counts))), counts)
    return np.asarray(np.stack(own, axis=1) + starts, dtype=np.int64)


def truth_of(pipeline: Pipeline, kept: Kept) -> Truth:
    """Arrays of a kept truth.

    Raises:
        ValueError: If it was measured on other variants than the pipeline has.
    """
    variants = variants_of(pipeline)
    if (kept.pipeline, tuple(kept.variants)) != (pipeline.name, variants):
        raise ValueError(
            f"the truth was measured on other variants than {pipeline.name!r} has: measure it again "
            "(bench/profiler.py --measure-truth)"
        )
    choices = choices_of(pipeline)
    starts = np.cumsum([0, *(len(page.variant) for page in kept.pages)])
    traced = [_traced(pipeline, choices, page) for page in kept.pages]
    sizes = [np.array(page.size_bytes)[page.made] for page in kept.pages]
    return Truth(
        pipeline=pipeline,
        inputs=tuple(page.info for page in kept.pages),
        configs=tuple(pipeline.config_key(config) for config in pipeline.configs()),
        variants=variants,
        scores=np.array([scores for _, scores in traced]),
        run_of=np.stack([runs + start for (runs, _), start in zip(traced, starts[:-1], strict=True)]),
        run_variant=np.concatenate([np.array(page.variant, np.int64) for page in kept.pages]),
        run_cpu_s=np.concatenate([page.cpu_us for page in kept.pages]) / 1e6,
        run_wall_s=np.concatenate([page.wall_us for page in kept.pages]) / 1e6,
        run_bytes=np.concatenate(sizes).astype(np.int64),
        run_input=np.repeat(np.arange(len(kept.pages)), np.diff(starts)),
        provenance=kept.provenance,
    )


def _traced(pipeline: Pipeline, choices: Indices, page: Page) -> tuple[Indices, Sequence[float]]:
    """Runs (C, O) and scores (C,) of all configs on one page, by following contents downstream."""
    found = {
        (variant, *read): run for run, (variant, read) in enumerate(zip(page.variant, page.read, strict=True))
    }
    runs = np.zeros(choices.shape, np.int64)
    scores = []
    for config, choice in enumerate(choices.tolist()):
        content = {REQUEST: 0}
        for column, (operator, variant) in enumerate(zip(pipeline.operators, choice, strict=True)):
            key = (variant, *(content[name] for name in operator.inputs))
            run = found[key]
            content[operator.name] = page.made[run]
            runs[config, column] = run
        scores.append(page.scores[content[pipeline.output]])
    return runs, scores


def load_truth(pipeline: Pipeline, file: Path) -> Truth:
    """Read a kept truth."""
    return truth_of(pipeline, msgspec.json.decode(gzip.decompress(file.read_bytes()), type=Kept))


def keep_truth(kept: Kept, file: Path) -> None:
    """Write a truth; the same truth always gives the same bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(msgspec.json.encode(kept), mtime=0))
