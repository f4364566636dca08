"""What a profiling run found, as the files that planners read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compass_coordinator.measurements import SCHEMA, MeasurementsDocument, SiteWork
from compass_coordinator.profiler.selective import Known, KnownOther, Options, Profiler
from compass_shared.measured import Ready
from compass_shared.pipeline import Pipeline, variant_key
from compass_shared.profile import Accuracy, AccuracyTable, OperatorProfile, Provenance, SiteProfile

DIGITS = 6


def accuracy_table(ready: Ready, profiler: Profiler, known: Known, *, today: str, seed: int) -> AccuracyTable:
    """The accuracy of all configs.

    Args:
        ready: What was measured.
        profiler: After the run.
        known: What it knows.
        today: The date, for the record.
        seed: Of the run.
    """
    return AccuracyTable(
        pipeline=ready.pipeline,
        metric=ready.metric,
        split=ready.split,
        confidence=profiler.options.confidence,
        inputs=len(ready.inputs),
        configs={key: _accuracy(known, at) for at, key in enumerate(profiler.space.keys)},
        others={name: _measured(profiler, found) for name, found in profiler.known_others().items()},
        provenance={
            "date": today,
            **ready.provenance,
            "pipeline_digest": ready.digest,
            "code_sha256": ready.code_sha256,
            "models": dict(ready.models),
            "inputs": len(ready.inputs),
            "operator_seconds": round(profiler.runs.spent_s, 1),
            "configs_measured": int((known.counts > 0).sum()),
            "configs_on_all_inputs": int((known.counts == len(ready.inputs)).sum()),
            "expected_wrong": _expected(profiler),
            "savings": _savings(profiler.options),
            "seed": seed,
            "failures": int(profiler.observations.failures.sum()),
        },
    )


def speeds_here(
    pipeline: Pipeline, ready: Ready, profiler: Profiler, *, site: str, today: str
) -> MeasurementsDocument:
    """Operator times of this machine, as far as operators ran.

    They are thread CPU seconds of calls made one after the other, over all upstream choices that were
    measured.
    """
    times = profiler.times
    classes = {
        variant_key(op.name, knobs): op.speed_class for op in pipeline.operators for knobs in op.variants()
    }
    operators = {
        variant: OperatorProfile(
            variant=variant,
            mean_s=float(times.mean_s[at]),
            var_s2=float(times.var_s2[at]),
            p95_s=float(times.p95_s[at]),
            count=int(times.count[at]),
            output_mean_bytes=float(times.output_mean_bytes[at]),
            output_var_bytes2=float(times.output_var_bytes2[at]),
            items_mean=None if np.isnan(times.items_mean[at]) else float(times.items_mean[at]),
            items_var=float(np.nan_to_num(times.items_var[at])),
            item_s=float(times.item_s[at]),
            speed_class=classes[variant],
        )
        for at, variant in enumerate(profiler.space.variants)
        if times.count[at] > 0
    }
    sizes = np.array([size for info in ready.inputs for size in info.requests], dtype=np.float64)
    profile = SiteProfile(
        site=site,
        pipeline=ready.pipeline,
        digest=ready.digest,
        operators=operators,
        request_mean_bytes=float(sizes.mean()),
        request_var_bytes2=float(sizes.var(ddof=1)) if len(sizes) > 1 else 0.0,
        provenance=Provenance(
            date=today,
            compass=str(ready.provenance.get("compass", "")),
            device=str(ready.provenance.get("machine", "")),
            runtimes=_texts(ready.provenance.get("runtimes")),
            models=dict(ready.models),
        ),
    )
    return MeasurementsDocument(schema=SCHEMA, kind="measurements", sites=(SiteWork.of(profile),))


def _expected(profiler: Profiler) -> float | None:
    """Share of queries whose choice may be wrong; None if the run never looked."""
    return None if profiler.status.wrong is None else round(profiler.status.wrong, 4)


def _accuracy(known: Known, at: int) -> Accuracy:
    mean = round(float(known.mean[at]), DIGITS)
    return Accuracy(
        mean=mean,
        standard_error=round(float(known.standard_error[at]), DIGITS),
        count=int(known.counts[at]),
        low=min(mean, round(float(known.low[at]), DIGITS)),
        high=max(mean, round(float(known.high[at]), DIGITS)),
        predicted=bool(known.counts[at] == 0),
    )


def _measured(profiler: Profiler, known: KnownOther) -> dict[str, Accuracy]:
    """Config key -> an extra metric, of the configs that were measured."""
    return {
        profiler.space.keys[at]: Accuracy(
            mean=round(float(known.mean[at]), DIGITS),
            standard_error=round(float(known.standard_error[at]), DIGITS),
            count=int(known.counts[at]),
        )
        for at in np.flatnonzero(known.counts)
    }


def _savings(options: Options) -> list[str]:
    names = ("strata", "reuse", "early_stopping", "transfer")
    return [name for name in names if getattr(options, name)]


def _texts(found: object) -> dict[str, str]:
    return {str(name): str(text) for name, text in found.items()} if isinstance(found, Mapping) else {}
