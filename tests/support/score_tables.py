"""Scores of made-up configs on made-up inputs, distributed like measured ones: many ones, some zeros."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def score_table(configs: int, inputs: int) -> Floats:
    """(configs, inputs) scores in [0, 1]; configs agree on which inputs are hard, and each has surprises."""
    ability = np.linspace(0.0, 2.5, configs)[:, np.newaxis]
    index = np.arange(inputs)
    hardness = 3.0 * ((index * 0.6180339887) % 1.0) ** 2
    surprise = 0.5 * np.sin(1.7 * np.arange(configs)[:, np.newaxis] + 2.3 * index)
    return np.clip(0.5 + 0.5 * (ability - hardness + surprise), 0.0, 1.0)


def populations() -> dict[str, Floats]:
    """Input sets of 40, each hard for an interval in its own way."""
    ranks = (np.arange(40) + 0.5) / 40
    return {
        "bernoulli": (ranks < 0.85).astype(np.float64),
        "skewed": 1 - ranks**8,
        "bimodal": np.where(ranks < 0.4, 0.1 * ranks, 0.9 + 0.1 * ranks),
        "measured": score_table(5, 40)[2],
    }


def shuffled(values: Floats, times: int, rng: np.random.Generator) -> Floats:
    """(times, inputs) the same values, in a random order each."""
    return rng.permuted(np.tile(values, (times, 1)), axis=1)


def prefixes(rows: Floats) -> Floats:
    """(rows, samples, samples): each row as seen after 1, 2, ... samples, NaN where it was not seen yet."""
    count = rows.shape[1]
    seen = np.arange(count) <= np.arange(count)[:, np.newaxis]
    return np.where(seen, rows[:, np.newaxis, :], np.nan)
