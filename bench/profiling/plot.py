"""The plot of the bench: what a method has spent against how many queries it plans right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot as plt  # after the backend is chosen

from profiling.score import Quality

STYLES = {
    "selective": ("#0b6e4f", 2.4),
    "Bayesian optimisation": ("#c8553d", 1.6),
    "successive halving": ("#588b8b", 1.6),
    "random configs": ("#8a7f8d", 1.2),
    "random inputs": ("#b08968", 1.2),
    "random scores": ("#adb5bd", 1.2),
}
"""Methods drawn, in this order: colour and width of the line."""


def draw(traces: Mapping[str, Sequence[Sequence[Quality]]], exhaustive_s: float, file: Path) -> None:
    """Draw every run of every method; the same runs always give the same file.

    Args:
        traces: Method -> runs -> points.
        exhaustive_s: Operator-seconds of everything, nothing reused: the right end.
        file: An SVG.
    """
    with plt.rc_context({"svg.hashsalt": "profiler", "font.size": 10, "axes.spines.top": False}):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        for name, (colour, width) in STYLES.items():
            for at, points in enumerate(traces.get(name, ())):
                spent = [point.spent_s for point in points]
                right = [100 * point.right for point in points]
                axes.plot(spent, right, color=colour, lw=width, alpha=0.75, label=None if at else name)
                axes.plot(spent[-1:], right[-1:], "o", color=colour, ms=4)
        axes.axhline(98, color="#495057", lw=0.8, ls=":")
        axes.axvline(exhaustive_s, color="#495057", lw=0.8, ls=":")
        axes.text(exhaustive_s * 0.94, 3, "everything, nothing reused", rotation=90, ha="right", fontsize=8)
        axes.set(xscale="log", ylim=(0, 101))
        axes.set(xlabel="operator-seconds of profiling", ylabel="queries planned right, %")
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        axes.spines["right"].set_visible(False)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
