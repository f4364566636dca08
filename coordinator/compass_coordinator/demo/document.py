"""The demo's result as JSON."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import msgspec
import psutil

from compass_coordinator.demo.accounting import Calls
from compass_coordinator.demo.run import DemoResult, PhaseResult
from compass_shared import __version__


def document_of(result: DemoResult) -> dict[str, Any]:
    """The result as JSON, with the fleet file in it."""
    options = result.options
    return {
        "schema": 1,
        "kind": "demo",
        "compass": __version__,
        "python": platform.python_version(),
        "machine": {
            "machine": platform.machine(),
            "cores": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
        },
        "seconds": options.seconds,
        "seed": options.seed,
        "rate_factor": options.rate_factor,
        "fleet_file": options.fleet_file.read_text(encoding="utf-8"),
        "queries": msgspec.to_builtins(result.queries),
        "links": result.links,
        "accuracy_checks": result.accuracy_checks,
        "timings_s": result.timings_s,
        "phases": [_phase(result, phase) for phase in result.phases],
    }


def _phase(result: DemoResult, phase: PhaseResult) -> dict[str, Any]:
    pipelines = {query.name: query.pipeline for query in result.queries}
    rows = {
        name: {"pipeline": pipelines[name], **msgspec.to_builtins(row)} for name, row in phase.rows.items()
    }
    return {
        "phase": phase.phase,
        "total": msgspec.to_builtins(phase.total),
        "pipelines": {name: msgspec.to_builtins(total) for name, total in phase.by_pipeline.items()},
        "queries": rows,
        "planned": phase.planned,
        "worker_calls": {name: _by_query(calls) for name, calls in phase.worker_calls.items()},
        "overruns": phase.overruns,
        "accounting_problems": list(phase.problems),
        "replanned": list(phase.replanned),
        "requests": list(phase.requests),
    }


def _by_query(calls: Calls) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (query, operator), count in sorted(calls.items()):
        nested.setdefault(query, {})[operator] = count
    return nested


def write_document(path: Path, result: DemoResult) -> None:
    """Write the result as JSON."""
    path.write_text(json.dumps(document_of(result), indent=1) + "\n", encoding="utf-8")
