"""The configs of an accuracy table as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.search.tables import Tables
from compass_shared.pipeline import variant_key
from compass_shared.profile import AccuracyTable


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownConfigs:
    """Configs whose accuracy is known; no other may be chosen."""

    choices: Indices
    """(configs, n) variant of every operator."""
    accuracy: Floats
    """(configs,)."""


def known_configs(tables: Tables, table: AccuracyTable | None) -> KnownConfigs:
    """Read an accuracy table; keys that name no config of the pipeline are passed over."""
    operators = tables.pipeline.operators
    texts = [
        {variant_key(op.name, knobs): at for at, knobs in enumerate(listed)}
        for op, listed in zip(operators, tables.variants, strict=True)
    ]
    choices, accuracy = [], []
    for key, found in table.configs.items() if table is not None else ():
        choice = _parse(key, texts)
        if choice is not None:
            choices.append(choice)
            accuracy.append(found.mean)
    shape = (len(choices), len(operators))
    return KnownConfigs(
        choices=np.array(choices, dtype=np.int64).reshape(shape),
        accuracy=np.array(accuracy, dtype=np.float64),
    )


def _parse(key: str, texts: list[dict[str, int]]) -> list[int] | None:
    parts = key.split(";")
    if len(parts) != len(texts):
        # A knob's value holds a semicolon: take the longest variant that fits, operator by operator.
        return _parse_slowly(key, texts)
    found = [known.get(part) for known, part in zip(texts, parts, strict=True)]
    return None if None in found else found  # type: ignore[return-value]


def _parse_slowly(key: str, texts: list[dict[str, int]]) -> list[int] | None:
    found = []
    for known in texts:
        fits = [text for text in known if key == text or key.startswith(text + ";")]
        if not fits:
            return None
        text = max(fits, key=len)
        found.append(known[text])
        key = key[len(text) + 1 :]
    return None if key else found
