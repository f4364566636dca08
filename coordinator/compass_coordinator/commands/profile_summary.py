"""What ``compass profile`` says at its end, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compass_coordinator.profiler.selective import Known, KnownOther, Profiler
from compass_coordinator.profiler.statistics.generalise import betting_interval, student_interval
from compass_shared.items import items_text
from compass_shared.measured import Ready

FEWEST = 8
"""Inputs below which an interval would say nothing of new ones."""


def summary_of(ready: Ready, profiler: Profiler, known: Known, out: Path, log: Path) -> dict[str, object]:
    """The summary as JSON has it."""
    status = profiler.status
    whole = np.flatnonzero(known.counts == len(ready.inputs))
    # Of equals the one that is known best.
    best = int(np.lexsort((known.counts, known.mean))[-1])
    return {
        "pipeline": ready.pipeline,
        "finished": profiler.finished,
        "operator_seconds": round(status.spent_s, 1),
        "configs": status.configs,
        "measured": status.measured,
        "on_all_inputs": len(whole),
        "decided": status.decided,
        "expected_wrong": None if status.wrong is None else round(status.wrong, 4),
        "most_accurate": {
            "config": profiler.space.keys[best],
            "accuracy": round(float(known.mean[best]), 4),
            "on_inputs": int(known.counts[best]),
            "of_inputs": len(ready.inputs),
            "on_new_inputs": _beyond(profiler, best, ready.kind),
        },
        "extra_metrics": {
            name: _other(found, best) for name, found in profiler.known_others().items() if found.counts.any()
        },
        "items": _items(profiler),
        "failures": _failures(profiler),
        "out": str(out),
        "log": str(log),
    }


def _share(found: object) -> str:
    return f"{found:.2%}" if isinstance(found, float) else "not known"


def _beyond(profiler: Profiler, config: int, kind: str) -> list[float] | None:
    """Where the accuracy on new inputs is, from those measured; None where they say nothing of others."""
    above, below = profiler.observations.numerators[:, config], profiler.observations.denominators[:, config]
    measured = np.flatnonzero(~np.isnan(above))
    if len(measured) < FEWEST:
        return None
    alpha = 1 - profiler.options.confidence
    if kind == "mean":
        # Bets presume a random order, and input sets are often sorted.
        shuffled = np.random.default_rng(0).permutation(measured)
        found = betting_interval(np.clip(above[shuffled], 0.0, 1.0), alpha=alpha)
    else:
        found = student_interval(above[measured], below[measured], alpha=alpha)
    ends = [round(found.low, 4), round(found.high, 4)]
    # Of inputs that all have the same ratio Student's interval is a point.
    return ends if ends[0] < ends[1] else None


def _basis(best: Mapping[str, object]) -> str:
    """What an accuracy rests on, if not on all inputs."""
    if best["on_inputs"] == best["of_inputs"]:
        return ""
    return f" (on {best['on_inputs']} of {best['of_inputs']} inputs)" if best["on_inputs"] else " (predicted)"


def _failures(profiler: Profiler) -> Mapping[str, object]:
    failures = profiler.observations.failures
    return {
        "configs": int((failures > 0).sum()),
        "inputs_without_score": int(failures.sum()),
        "first": next(iter(profiler.observations.problems.items()), None),
    }


def _other(known: KnownOther, best: int) -> Mapping[str, object]:
    """An extra metric, over the configs that were measured."""
    measured = known.mean[known.counts > 0]
    return {
        "of_most_accurate": round(float(known.mean[best]), 4) if known.counts[best] else None,
        "least": round(float(measured.min()), 4),
        "most": round(float(measured.max()), 4),
        "configs": len(measured),
    }


def _items(profiler: Profiler) -> Mapping[str, Mapping[str, float]]:
    """Variant of a fan-out -> what it works through."""
    times = profiler.times
    return {
        profiler.space.variants[at]: {
            "mean": round(float(times.items_mean[at]), 3),
            "standard_deviation": round(float(times.items_var[at]) ** 0.5, 3),
            "item_ms": round(1e3 * float(times.item_s[at]), 4),
        }
        for at in np.flatnonzero(np.isfinite(times.items_mean))
    }


def _other_told(name: str, found: Mapping[str, object]) -> str:
    best = found["of_most_accurate"]
    there = "" if best is None else f"{best:.4f} there, "
    return f"  {name}: {there}{found['least']:.4f} to {found['most']:.4f} over {found['configs']} configs"


def told(summary: Mapping[str, object]) -> str:
    """The summary in words."""
    best, failed = summary["most_accurate"], summary["failures"]
    assert isinstance(best, Mapping)
    assert isinstance(failed, Mapping)
    lines = [
        f"{summary['out']}: {summary['configs']} configs, {summary['measured']} measured, "
        f"{summary['on_all_inputs']} of them on all inputs; {summary['operator_seconds']} operator-seconds",
        f"expected share of queries decided wrongly: {_share(summary['expected_wrong'])}"
        + ("" if summary["finished"] else " (the budget is spent; --resume goes on)"),
        f"most accurate: {best['accuracy']:.4f}{_basis(best)}  {best['config']}",
    ]
    if best["on_new_inputs"] is not None:
        low, high = best["on_new_inputs"]
        lines.append(
            f"  on new inputs like these {low:.3f} to {high:.3f}: how far this set of inputs carries"
        )
    others, items = summary["extra_metrics"], summary["items"]
    assert isinstance(others, Mapping)
    assert isinstance(items, Mapping)
    lines += [_other_told(name, found) for name, found in others.items()]
    lines += [
        f"  {variant}: {items_text(found['mean'], found['standard_deviation'], found['item_ms'] / 1e3)}"
        for variant, found in items.items()
    ]
    if failed["configs"]:
        key, problem = failed["first"]
        lines.append(
            f"without a score, counted as 0: {failed['inputs_without_score']} measurements "
            f"of {failed['configs']} configs"
        )
        lines.append(f"  the first: {key}: {problem}")
    return "\n".join(lines)
