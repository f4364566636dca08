"""Measures the accuracy of a pipeline's configs over a labelled input set: all cores, resumable.

Every finished input is appended to a progress file at once; a second run of the same measurement skips
what is there. The measurement is the same only if pipeline, code, models and configs are: otherwise the
progress file is refused.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compass_agent.bundles import Bundle, load_bundle
from compass_agent.inputs import check_names, load_examples
from compass_agent.measure.grid import InputResult, measure_input
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.runtimes import available_runtimes
from compass_shared import __version__
from compass_shared.errors import ConfigError, ProfileError
from compass_shared.files import write_atomically
from compass_shared.model_cache import ModelCache
from compass_shared.pipeline import Config, Pipeline
from compass_shared.profile import Accuracy, AccuracyTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a measurement is."""

    done: int
    total: int
    spent_s: float
    """Wall seconds of this run."""
    remaining_s: float | None
    """Estimate, None before the first input is done."""


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line of a progress file: what is being measured."""

    pipeline: str
    digest: str
    code_sha256: str
    split: str
    configs_sha256: str


def measure_accuracy(
    bundle_folder: Path,
    cache_root: Path,
    *,
    split: str,
    progress_file: Path,
    configs: Sequence[Config] | None = None,
    limit: int | None = None,
    workers: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> tuple[AccuracyTable, list[InputResult]]:
    """Measure configs on one split of the bundle's inputs.

    Args:
        bundle_folder: Folder with pipeline.toml.
        cache_root: Folder of the model cache.
        split: Which inputs.
        progress_file: Kept up to date after every input; resumed from if it exists.
        configs: Which configs; all by default.
        limit: Only the first so many inputs.
        workers: Processes; one a core by default.
        on_progress: Called after every input.

    Returns:
        The table, and the result of every input in the input set's order.

    Raises:
        ConfigError: The bundle has no such split or no metric, or there is nothing to measure.
        ProfileError: The progress file is of another measurement, or the metric fails.
    """
    bundle = load_bundle(bundle_folder)
    chosen = list(bundle.pipeline.configs()) if configs is None else list(configs)
    names = _input_names(bundle, cache_root, split)[:limit]
    if not names or not chosen:
        raise ConfigError("nothing to measure: give at least one input and one config", field="inputs.splits")
    header = _header(bundle, split, chosen)
    results = _resume(progress_file, header)
    todo = [index for index, name in enumerate(names) if name not in results]
    started_s = time.monotonic()
    measured = _run_all(bundle_folder, cache_root, split, chosen, todo, workers or os.cpu_count() or 1)
    with _append(progress_file, header, results) as write:
        for done, result in enumerate(measured, start=1):
            write(result)
            results[result.name] = result
            spent_s = time.monotonic() - started_s
            left_s = spent_s / done * (len(todo) - done)
            finished = len(names) - len(todo) + done
            on_progress(Progress(done=finished, total=len(names), spent_s=spent_s, remaining_s=left_s))
    ordered = [results[name] for name in names]
    return _table(bundle, split, chosen, ordered), ordered


def _input_names(bundle: Bundle, cache_root: Path, split: str) -> list[str]:
    if bundle.pipeline.inputs is None or bundle.pipeline.metric is None:
        raise ConfigError(
            "measuring accuracy needs [inputs] and [metric]", file=bundle.folder, field="inputs"
        )
    if split not in bundle.pipeline.inputs.splits:
        known = ", ".join(bundle.pipeline.inputs.splits)
        raise ConfigError(f"there is no split {split!r}; there are {known}", field="inputs.splits")
    examples = load_examples(bundle, split, ModelStore(ModelCache(cache_root)))
    check_names(bundle, examples)
    return [example.name for example in examples]


def _header(bundle: Bundle, split: str, configs: Sequence[Config]) -> _Header:
    keys = "\n".join(bundle.pipeline.config_key(config) for config in configs)
    return _Header(
        pipeline=bundle.pipeline.name,
        digest=bundle.pipeline.digest,
        code_sha256=bundle.code_sha256,
        split=split,
        configs_sha256=hashlib.sha256(keys.encode()).hexdigest(),
    )


def _resume(path: Path, header: _Header) -> dict[str, InputResult]:
    if not path.exists():
        return {}
    lines = path.read_bytes().splitlines()
    try:
        found = msgspec.json.decode(lines[0], type=_Header)
    except (IndexError, msgspec.MsgspecError) as error:
        raise ProfileError(f"{path}: not a progress file: {error}; remove it to start afresh") from error
    if found != header:
        raise ProfileError(
            f"{path}: it measured another version of {found.pipeline!r} ({found.split}); "
            "remove it to start afresh"
        )
    results = {}
    for line in lines[1:]:
        try:
            result = msgspec.json.decode(line, type=InputResult)
        except msgspec.MsgspecError:
            # The last line is cut short when a run was killed while writing it: that input is measured again.
            continue
        results[result.name] = result
    return results


class _append:  # noqa: N801  # reads as the verb it is in `with`
    """Appends results to a progress file, each flushed to disk before the next."""

    def __init__(self, path: Path, header: _Header, kept: Mapping[str, InputResult]) -> None:
        # Without what was cut short; and a run that is stopped right here has lost nothing.
        write_atomically(path, b"".join(map(_line, (header, *kept.values()))))
        self._file = path.open("ab")

    def __enter__(self) -> Callable[[InputResult], None]:
        return self._append

    def __exit__(self, *_exc: object) -> None:
        self._file.close()

    def _append(self, result: InputResult) -> None:
        self._file.write(_line(result))
        self._file.flush()
        os.fsync(self._file.fileno())


def _line(content: object) -> bytes:
    return msgspec.json.encode(content) + b"\n"


# --- worker processes -----------------------------------------------------------------------------

_task: dict[str, Any] = {}
"""What this worker process measures; set once by ``_start_worker``."""


def _start_worker(folder: Path, cache_root: Path, split: str, configs: Sequence[Config]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    bundle = load_bundle(folder)
    store = ModelStore(ModelCache(cache_root))
    host = OperatorHost([bundle], store)
    _task.update(
        bundle=bundle,
        configs=configs,
        host=host,
        examples=load_examples(bundle, split, store),
        score=bundle.metric(),
        extra=bundle.extra_metrics(),
    )


def _end_with_parent() -> None:
    """However the parent ends, nobody is left to take the result."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure_one(index: int) -> InputResult:
    bundle: Bundle = _task["bundle"]
    host: OperatorHost = _task["host"]
    return measure_input(
        bundle.pipeline,
        _task["configs"],
        _task["examples"][index],
        run=lambda operator, inputs, knobs, state=None: host.bind(bundle.pipeline.name, operator.name, knobs)(
            inputs, state
        ),
        score=_task["score"],
        extra=_task["extra"],
    )


def _run_all(
    folder: Path,
    cache_root: Path,
    split: str,
    configs: Sequence[Config],
    todo: Sequence[int],
    workers: int,
) -> Iterable[InputResult]:
    if not todo:
        return
    # spawn: a forked child would share the parent's model sessions and their locks.
    pool = ProcessPoolExecutor(
        max_workers=min(workers, len(todo)),
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(folder, cache_root, split, list(configs)),
    )
    try:
        futures = [pool.submit(_measure_one, index) for index in todo]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# --- the table ------------------------------------------------------------------------------------


def _table(
    bundle: Bundle, split: str, configs: Sequence[Config], results: Sequence[InputResult]
) -> AccuracyTable:
    pipeline = bundle.pipeline
    metric = pipeline.metric
    keys = [pipeline.config_key(config) for config in configs]
    return AccuracyTable(
        pipeline=pipeline.name,
        metric=metric.name if metric is not None else "",
        split=split,
        configs=_accuracies(keys, *aggregated(results), count=len(results)),
        others={
            extra.name: _accuracies(
                keys, *_ratios(np.array([r.others[extra.name] for r in results])), count=len(results)
            )
            for extra in pipeline.extra_metrics
        },
        provenance=_provenance(bundle, results),
    )


def _accuracies(
    keys: Sequence[str], means: NDArray[np.float64], errors: NDArray[np.float64], *, count: int
) -> dict[str, Accuracy]:
    return {
        key: Accuracy(mean=round(float(mean), 6), standard_error=round(float(error), 6), count=count)
        for key, mean, error in zip(keys, means, errors, strict=True)
    }


def aggregated(results: Sequence[InputResult]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accuracy and standard error of every config, both (configs,) float64.

    A ratio of sums is treated as linear in them (Cochran, Sampling Techniques, 3rd ed., section 6.3); for a
    mean, whose denominators are 1, that is exact.
    """
    scores = np.array([result.scores for result in results])
    weights = np.array([result.denominators or [1.0] * len(result.scores) for result in results])
    return _ratios(np.stack([scores, weights], axis=-1))


def _ratios(counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``aggregated`` of numerators and denominators (inputs, configs, 2)."""
    scores, weights = counts[..., 0], counts[..., 1]
    if not (totals := weights.sum(axis=0)).all():
        raise ProfileError("the metric counted nothing: its denominators are 0 on every input")
    ratios = scores.sum(axis=0) / totals
    count = len(counts)
    if count < 2:
        return ratios.clip(0.0, 1.0), np.zeros_like(ratios)
    residuals = scores - ratios * weights
    errors = np.sqrt(count / (count - 1) * (residuals**2).sum(axis=0)) / totals
    return ratios.clip(0.0, 1.0), errors


def _provenance(bundle: Bundle, results: Sequence[InputResult]) -> dict[str, object]:
    pipeline = bundle.pipeline
    seconds: dict[str, float] = {}
    runs: dict[str, int] = {}
    for result in results:
        for variant, spent_s in result.seconds.items():
            seconds[variant] = seconds.get(variant, 0.0) + spent_s
            runs[variant] = runs.get(variant, 0) + result.runs[variant]
    return {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "compass": __version__,
        "pipeline_version": pipeline.version,
        "pipeline_digest": pipeline.digest,
        "code_sha256": bundle.code_sha256,
        "models": used_models(pipeline),
        "runtimes": available_runtimes(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "inputs": len(results),
        "groups": _counts(result.group for result in results),
        "failures": sum(result.failures for result in results),
        "operator_seconds": round(sum(seconds.values()), 1),
        "cpu_ms_per_run": {variant: round(1e3 * seconds[variant] / runs[variant], 3) for variant in seconds},
        "runs": runs,
    }


def used_models(pipeline: Pipeline) -> dict[str, str]:
    """SHA-256 of every model that some config uses, assets left out."""
    names = {
        name
        for operator in pipeline.operators
        for knobs in operator.variants()
        if (name := operator.model_for(knobs)) is not None
    }
    return {name: pipeline.models[name].sha256 for name in sorted(names)}


def _counts(items: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return dict(sorted(counts.items()))


def save_inputs(path: Path, configs: Sequence[str], results: Sequence[InputResult]) -> None:
    """Write every input's scores and operator times, compactly: what a later study replays."""
    document = {
        "schema": 1,
        "kind": "accuracy-inputs",
        "configs": list(configs),
        "inputs": [
            {
                "name": r.name,
                "group": r.group,
                "scores": [round(score, 4) for score in r.scores],
                "cpu_ms": {v: round(1e3 * r.seconds[v] / r.runs[v], 2) for v in r.seconds},
            }
            | ({"denominators": r.denominators} if r.denominators else {})
            for r in results
        ],
    }
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
