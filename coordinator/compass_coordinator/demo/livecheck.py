"""The demo's own measurements of accuracy, by ``compass-agent accuracy`` in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from compass_coordinator.commands.files import INPUTS_IN_BUNDLE
from compass_coordinator.demo.agent_command import run_agent_command
from compass_coordinator.demo.options import DemoOptions
from compass_shared.errors import ProfileError
from compass_shared.pipeline import Pipeline
from compass_shared.profile import AccuracyTable
from compass_shared.profile_file import load_accuracy

CHECK_INPUTS = 6
"""Inputs that a live check looks at: the first ones of the split that the profile was measured on."""
CHECK_PATIENCE_S = 30.0
"""A live check that takes longer is given up: the demo is not about it."""
AFRESH_INPUTS = 24
"""Inputs that ``--profile-now`` measures every config on."""
SPLIT = "profiling"


class _InputScores(msgspec.Struct, frozen=True):
    name: str
    scores: list[float]
    denominators: list[float] = []


class _InputsDocument(msgspec.Struct, frozen=True):
    configs: list[str]
    inputs: list[_InputScores]


async def check_accuracy(options: DemoOptions, pipeline: str) -> list[Mapping[str, Any]] | str:
    """Measure a few configs of a pipeline again and compare with its profile on the very same inputs.

    Args:
        options: Says how many configs, and names bundle and folders.
        pipeline: Which one.

    Returns:
        Rows with ``pipeline``, ``config``, ``inputs``, ``profile`` and ``now``; or why there are none.

    Raises:
        ProfileError: If measuring failed.
    """
    scores = options.bundles[pipeline] / INPUTS_IN_BUNDLE
    if not scores.is_file():
        return f"accuracies of {pipeline} are not checked: there are no scores of single inputs in {scores}"
    known = _known_scores(scores)
    ranked = sorted(known.configs, key=lambda key: _mean(known, key, len(known.inputs)))
    chosen = _spread(ranked, options.check_configs)
    table = options.work / f"checked-{pipeline}.json"
    inputs = min(CHECK_INPUTS, len(known.inputs))
    try:
        await asyncio.wait_for(_measure(options, pipeline, chosen, inputs, table), CHECK_PATIENCE_S)
    except asyncio.TimeoutError:
        return f"accuracies of {pipeline} are not checked: that took longer than {CHECK_PATIENCE_S:g} s"
    now = load_accuracy(table)
    return [
        {
            "pipeline": pipeline,
            "config": key,
            "inputs": inputs,
            "profile": _mean(known, key, inputs),
            "now": now.configs[key].mean,
        }
        for key in chosen
    ]


async def measure_afresh(options: DemoOptions, pipeline: Pipeline) -> Path:
    """Measure configs of a pipeline on fresh runs, and write an accuracy table of only these.

    Which ones are worth it is taken from the bundle's profile, their accuracies are not.

    Returns:
        The table.

    Raises:
        ProfileError: If measuring failed.
    """
    known = load_accuracy(options.accuracy[pipeline.name])
    table = options.work / f"accuracy-{pipeline.name}.json"
    chosen = worth_measuring(pipeline, known, options.profile_now)
    await _measure(options, pipeline.name, chosen, AFRESH_INPUTS, table)
    return table


def worth_measuring(pipeline: Pipeline, known: AccuracyTable, count: int) -> list[str]:
    """Keys of so many configs that plans are likely to use, spread from the fastest to the most accurate.

    Args:
        pipeline: What they are configs of.
        known: Its accuracy table, whose provenance has the CPU time of each variant.
        count: How many.

    Returns:
        Configs that no other beats in both time and accuracy; when those are too few, others as well.
    """
    cpu_ms = known.provenance.get("cpu_ms_per_run")
    keys = [pipeline.config_key(config) for config in pipeline.configs()]
    if not isinstance(cpu_ms, dict):
        return _spread(keys, count)
    fastest_first = sorted(known.configs, key=lambda key: sum(cpu_ms[variant] for variant in key.split(";")))
    best: list[str] = []
    for key in fastest_first:
        if not best or known.configs[key].mean > known.configs[best[-1]].mean:
            best.append(key)
    others = [key for key in keys if key not in set(best)]
    return _spread(best, count) + (_spread(others, count - len(best)) if count > len(best) else [])


def _spread(items: Sequence[str], count: int) -> list[str]:
    """So many items at equal distances, the first and the last among them."""
    if count >= len(items):
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


async def _measure(
    options: DemoOptions, pipeline: str, configs: Sequence[str], inputs: int, table: Path
) -> None:
    done = await run_agent_command(
        [
            *("accuracy", str(options.bundles[pipeline])),
            *("--split", SPLIT, "--limit", str(inputs), "--out", str(table)),
            *(word for key in configs for word in ("--config", key)),
            *([] if options.cache_root is None else ["--cache", str(options.cache_root)]),
        ]
    )
    if done.code != 0:
        raise ProfileError(
            f"measuring the accuracy of {pipeline} failed with exit code {done.code}:\n{done.tail}"
        )


def _known_scores(path: Path) -> _InputsDocument:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_InputsDocument)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}; --check 0 does without") from error
    except msgspec.MsgspecError as error:
        raise ProfileError(f"{path}: {error}") from error


def _mean(known: _InputsDocument, key: str, inputs: int) -> float:
    column = known.configs.index(key)
    rows = known.inputs[:inputs]
    weights = [row.denominators[column] if row.denominators else 1.0 for row in rows]
    return sum(row.scores[column] for row in rows) / sum(weights)
