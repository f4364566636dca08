"""The demo's own measurements of accuracy, by ``compass-agent accuracy`` in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from compass_coordinator.commands.files import INPUTS_IN_BUNDLE
from compass_coordinator.demo.options import DemoOptions
from compass_shared.errors import ProfileError
from compass_shared.pipeline import Pipeline
from compass_shared.pipeline_file import load_pipeline
from compass_shared.profile import AccuracyTable
from compass_shared.profile_file import load_accuracy

CHECK_INPUTS = 6
"""Inputs that a live check looks at: the first ones of the split that the profile was measured on."""
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


async def check_accuracy(options: DemoOptions, count: int) -> list[Mapping[str, Any]]:
    """Measure a few configs again and compare with the profile on the very same inputs.

    Args:
        options: Names bundle and folders.
        count: How many configs, spread over the range of accuracies.

    Returns:
        Rows with ``config``, ``inputs``, ``profile`` and ``now``.

    Raises:
        ProfileError: If the bundle keeps no scores per input, or measuring failed.
    """
    known = _known_scores(options.bundle / INPUTS_IN_BUNDLE)
    ranked = sorted(known.configs, key=lambda key: _mean(known, key, len(known.inputs)))
    chosen = _spread(ranked, count)
    table = options.work / "checked.json"
    await _measure(options, chosen, CHECK_INPUTS, table)
    now = load_accuracy(table)
    return [
        {
            "config": key,
            "inputs": CHECK_INPUTS,
            "profile": _mean(known, key, CHECK_INPUTS),
            "now": now.configs[key].mean,
        }
        for key in chosen
    ]


async def measure_afresh(options: DemoOptions, count: int, table: Path) -> None:
    """Measure so many configs on fresh runs, and write an accuracy table of only these.

    Which ones are worth it is taken from the bundle's profile, their accuracies are not.

    Raises:
        ProfileError: If measuring failed.
    """
    pipeline = load_pipeline(options.bundle)
    await _measure(
        options, worth_measuring(pipeline, load_accuracy(options.accuracy), count), AFRESH_INPUTS, table
    )


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


async def _measure(options: DemoOptions, configs: Sequence[str], inputs: int, table: Path) -> None:
    command = [
        *(sys.executable, "-m", "compass_agent", "accuracy", str(options.bundle)),
        *("--split", SPLIT, "--limit", str(inputs), "--out", str(table)),
        *(word for key in configs for word in ("--config", key)),
        *([] if options.cache_root is None else ["--cache", str(options.cache_root)]),
    ]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await process.communicate()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if process.returncode != 0:
        tail = "\n".join(errors.decode(errors="replace").splitlines()[-5:])
        raise ProfileError(f"measuring accuracy failed with exit code {process.returncode}:\n{tail}")


def _known_scores(path: Path) -> _InputsDocument:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_InputsDocument)
    except OSError as error:
        raise ProfileError(
            f"{path}: cannot be read: {error.strerror}; skip the check with --check 0"
        ) from error
    except msgspec.MsgspecError as error:
        raise ProfileError(f"{path}: {error}") from error


def _mean(known: _InputsDocument, key: str, inputs: int) -> float:
    column = known.configs.index(key)
    rows = known.inputs[:inputs]
    weights = [row.denominators[column] if row.denominators else 1.0 for row in rows]
    return sum(row.scores[column] for row in rows) / sum(weights)
