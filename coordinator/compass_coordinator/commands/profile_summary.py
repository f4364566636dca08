"""What ``compass profile`` says at its end, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compass_coordinator.profiler.selective import Known, Profiler
from compass_coordinator.profiler.statistics.generalise import student_interval
from compass_shared.measured import Ready


def summary_of(ready: Ready, profiler: Profiler, known: Known, out: Path, log: Path) -> dict[str, object]:
    """The summary as JSON has it."""
    status = profiler.status
    whole = np.flatnonzero(known.counts == len(ready.inputs))
    best = int(whole[np.argmax(known.mean[whole])]) if len(whole) else int(np.argmax(known.mean))
    scores = profiler.observations.numerators[:, best], profiler.observations.denominators[:, best]
    measured = ~np.isnan(scores[0])
    beyond = None
    if measured.sum() > 1:
        alpha = 1 - profiler.options.confidence
        found = student_interval(scores[0][measured], scores[1][measured], alpha=alpha)
        beyond = [round(found.low, 4), round(found.high, 4)]
    return {
        "pipeline": ready.pipeline,
        "finished": profiler.finished,
        "operator_seconds": round(status.spent_s, 1),
        "configs": status.configs,
        "measured": status.measured,
        "on_all_inputs": len(whole),
        "decided": status.decided,
        "expected_wrong": round(status.wrong, 4),
        "most_accurate": {
            "config": profiler.space.keys[best],
            "accuracy": round(float(known.mean[best]), 4),
            "on_new_inputs": beyond,
        },
        "failures": _failures(profiler),
        "out": str(out),
        "log": str(log),
    }


def _failures(profiler: Profiler) -> Mapping[str, object]:
    failures = profiler.observations.failures
    return {
        "configs": int((failures > 0).sum()),
        "inputs_without_score": int(failures.sum()),
        "first": next(iter(profiler.observations.problems.items()), None),
    }


def told(summary: Mapping[str, object]) -> str:
    """The summary in words."""
    best, failed = summary["most_accurate"], summary["failures"]
    assert isinstance(best, Mapping)
    assert isinstance(failed, Mapping)
    lines = [
        f"{summary['out']}: {summary['configs']} configs, {summary['measured']} measured, "
        f"{summary['on_all_inputs']} of them on all inputs; {summary['operator_seconds']} operator-seconds",
        f"expected share of queries decided wrongly: {summary['expected_wrong']:.2%}"
        + ("" if summary["finished"] else " (the budget is spent; --resume goes on)"),
        f"most accurate: {best['accuracy']:.4f}  {best['config']}",
    ]
    if best["on_new_inputs"] is not None:
        low, high = best["on_new_inputs"]
        lines.append(
            f"  on new inputs like these {low:.3f} to {high:.3f}: how far this set of inputs carries"
        )
    if failed["configs"]:
        key, problem = failed["first"]
        lines.append(
            f"without a score, counted as 0: {failed['inputs_without_score']} measurements "
            f"of {failed['configs']} configs"
        )
        lines.append(f"  the first: {key}: {problem}")
    return "\n".join(lines)
