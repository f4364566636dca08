"""One profile of several: ``compass profile merge``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import msgspec

from compass_coordinator.measurements import (
    SCHEMA,
    KindWork,
    LinkFigures,
    MeasurementsDocument,
    SiteWork,
    VariantWork,
)
from compass_coordinator.profiler.differing import variant_differences, works_of
from compass_coordinator.profiler.provenance import (
    Work,
    merged_site_provenance,
    merged_table_provenance,
    sources_of,
)
from compass_coordinator.profiler.uncertainty import accuracy_interval, mean_interval_s
from compass_shared.errors import ProfileError
from compass_shared.problem import Z95
from compass_shared.profile import Accuracy, AccuracyTable


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedAccuracy:
    """A table of several."""

    table: AccuracyTable
    disagreements: tuple[str, ...]
    """Configs that two tables measured with intervals that do not touch, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedMeasurements:
    """Measurements of several files."""

    document: MeasurementsDocument
    disagreements: tuple[str, ...]
    """Figures that were further apart than chance explains, in words."""


# --- accuracy -------------------------------------------------------------------------------------


def merge_accuracy(tables: Sequence[tuple[str, AccuracyTable]]) -> MergedAccuracy:
    """Keep the better known entry of every config: measured before predicted, then of more inputs.

    Args:
        tables: File -> table, all of one pipeline, metric, split and of the same models.

    Raises:
        ProfileError: If they are not, or their intervals have different confidences.
    """
    for field in ("pipeline", "metric", "split"):
        _check_alike(field, [(file, getattr(table, field)) for file, table in tables])
    _check_alike("inputs in the split", [(file, table.inputs) for file, table in tables if table.inputs])
    certain = [(file, table.confidence) for file, table in tables if _has_intervals(table)]
    _check_alike("confidence", certain)
    inputs = max(table.inputs for _, table in tables)
    provenance = merged_table_provenance([(file, table.provenance) for file, table in tables])
    confidence = certain[0][1] if certain else tables[0][1].confidence
    tables = [(file, replace(table, confidence=confidence, inputs=inputs)) for file, table in tables]
    configs: dict[str, Accuracy] = {}
    disagreements = []
    for key in dict.fromkeys(key for _, table in tables for key in table.configs):
        entries = [(file, table, table.configs[key]) for file, table in tables if key in table.configs]
        file, table, best = max(entries, key=lambda entry: _known(entry[2]))
        if inputs and best.count > inputs:
            raise ProfileError(
                f"{file}: {key}: {best.count} inputs were measured, the others' split has {inputs}"
            )
        configs[key] = best
        disagreements += [
            f"{key}: {best.mean:g} in {file}, {found.mean:g} in {other}: their intervals do not touch"
            for other, their, found in entries
            if not _touch(accuracy_interval(best, table), accuracy_interval(found, their))
        ]
    if disagreements:
        provenance["disagreements"] = disagreements
    merged = replace(tables[0][1], configs=configs, provenance=provenance)
    return MergedAccuracy(table=merged, disagreements=tuple(disagreements))


def _known(found: Accuracy) -> tuple[bool, int, float]:
    return not found.predicted, found.count, -found.standard_error


def _has_intervals(table: AccuracyTable) -> bool:
    return any(found.low is not None for found in table.configs.values())


def _touch(one: tuple[float, float], other: tuple[float, float]) -> bool:
    rounding = 1e-6  # as files keep them
    return max(one[0], other[0]) <= min(one[1], other[1]) + 2 * rounding


# --- measurements ---------------------------------------------------------------------------------


def merge_measurements(
    documents: Sequence[tuple[str, MeasurementsDocument]], *, force: bool = False
) -> MergedMeasurements:
    """Pool what was measured of the same variants at the same sites; links are the last file's that has them.

    Files that were merged before are recognised by their sources: nothing is counted twice.

    Args:
        documents: File -> measurements.
        force: Whether to pool what was measured on different devices or with different runtimes.

    Raises:
        ProfileError: If measurements of one site are not of the same thing, or partly of the same files.
    """
    disagreements: list[str] = []
    works = {file: works_of(document) for file, document in documents}
    merged: list[Work] = []
    for where in dict.fromkeys(where for found in works.values() for where in found):
        parts = [(file, found[where]) for file, found in works.items() if where in found]
        merged.append(_merged_work(where, _not_contained(where, parts), disagreements, force=force))
    links: dict[tuple[str, str], LinkFigures] = {}
    for _, document in documents:
        links.update({(link.source, link.target): link for link in document.links})
    document = MeasurementsDocument(
        schema=SCHEMA,
        kind="measurements",
        provenance=merged_table_provenance([(file, each.provenance) for file, each in documents]),
        sites=tuple(work for work in merged if isinstance(work, SiteWork)),
        kinds=tuple(work for work in merged if isinstance(work, KindWork)),
        links=tuple(links.values()),
    )
    return MergedMeasurements(document=document, disagreements=tuple(disagreements))


def pooled(parts: Sequence[VariantWork]) -> VariantWork:
    """Calls of several measurements as if they had been one.

    Count, mean and variance (of calls, and of the sizes of what they return) are exactly those of all calls
    together. The 95th percentile is approximate: that of a mixture in which each part is a normal
    distribution with the part's own mean and percentile. It lies between the parts' percentiles and is exact
    where these are equal. What nobody counted is left out beside what somebody did.

    Args:
        parts: At least one.
    """
    parts = list(dict.fromkeys(part for part in parts if part.count)) or [parts[0]]
    if len(parts) == 1:
        return parts[0]
    counts = [part.count for part in parts]
    mean_s, var_s2 = _moments(counts, [part.mean_s for part in parts], [part.var_s2 for part in parts])
    size, size_var = _moments(
        counts, [part.output_mean_bytes for part in parts], [part.output_var_bytes2 for part in parts]
    )
    return msgspec.structs.replace(
        parts[0],
        count=sum(counts),
        mean_s=mean_s,
        var_s2=var_s2,
        p95_s=_mixed_p95_s(parts),
        output_mean_bytes=size,
        output_var_bytes2=size_var,
        memory_bytes=max(part.memory_bytes for part in parts),
        mean_interval_s=_pooled_interval(parts, mean_s),
        p95_interval_s=None,
    )


def _merged_work(
    where: str, parts: Sequence[tuple[str, Work]], disagreements: list[str], *, force: bool
) -> Work:
    _check_same_thing(where, parts)
    try:
        provenance = merged_site_provenance(parts, force=force)
    except ProfileError as error:
        raise ProfileError(f"{where}: {error}") from error
    operators: dict[str, VariantWork] = {}
    for key in dict.fromkeys(key for _, work in parts for key in work.operators):
        found = [(file, work.operators[key]) for file, work in parts if key in work.operators]
        disagreements += _apart(f"{where}: {key}", found)
        operators[key] = pooled([variant for _, variant in found])
    weights = [max((found.count for found in work.operators.values()), default=0) for _, work in parts]
    request, request_var = _moments(
        weights if any(weights) else [1] * len(parts),
        [work.request_mean_bytes for _, work in parts],
        [work.request_var_bytes2 for _, work in parts],
    )
    _, first = parts[0]
    return msgspec.structs.replace(
        first,
        operators=operators,
        provenance=provenance,
        digest=next((work.digest for _, work in parts if work.digest), ""),
        request_mean_bytes=request,
        request_var_bytes2=request_var,
    )


def _apart(what: str, found: Sequence[tuple[str, VariantWork]]) -> list[str]:
    """Neighbours in time that chance does not explain, however exactly they can be pooled."""
    return [
        f"{what}: {field} {getattr(one, field):g} in {file}, {getattr(other, field):g} in {later}: "
        "further apart than chance explains"
        for (file, one), (later, other) in itertools.pairwise(found)
        if bool(one.count) == bool(other.count)
        for field in variant_differences(one, other)
        if getattr(one, field) is not None and getattr(other, field) is not None
    ]


def _not_contained(where: str, parts: Sequence[tuple[str, Work]]) -> list[tuple[str, Work]]:
    """Parts without those that another part was already merged from."""
    kept: list[tuple[str, Work]] = []
    for file, work in sorted(parts, key=lambda part: -len(sources_of(part[1], part[0]))):
        sources = set(sources_of(work, file))
        shared = [(other, have) for other, have in kept if sources & set(sources_of(have, other))]
        if not shared:
            kept.append((file, work))
        elif not any(sources <= set(sources_of(have, other)) for other, have in shared):
            raise ProfileError(
                f"{where}: {file} and {shared[0][0]} were partly merged from the same files; "
                "merge the files they were made of"
            )
    order = [file for file, _ in parts]
    return sorted(kept, key=lambda part: order.index(part[0]))


def _check_same_thing(where: str, parts: Sequence[tuple[str, Work]]) -> None:
    _check_alike(f"{where}: digest", [(file, work.digest) for file, work in parts if work.digest])
    for field in ("emulated", "slowdowns", "overhead_s"):
        _check_alike(
            f"{where}: {field}",
            [(file, getattr(work, field)) for file, work in parts if isinstance(work, SiteWork)],
        )


def _check_alike(what: str, found: Sequence[tuple[str, object]]) -> None:
    for file, value in found[1:]:
        first, expected = found[0]
        if value != expected:
            raise ProfileError(f"{file}: {what} is {value!r}, {expected!r} in {first}: cannot be merged")


def _moments(
    counts: Sequence[int], means: Sequence[float], variances: Sequence[float]
) -> tuple[float, float]:
    """Mean and unbiased variance of all values together."""
    total = sum(counts)
    mean = math.fsum(n * each for n, each in zip(counts, means, strict=True)) / total
    squares = math.fsum(
        max(0, n - 1) * variance + n * (each - mean) ** 2
        for n, each, variance in zip(counts, means, variances, strict=True)
    )
    return mean, squares / (total - 1) if total > 1 else variances[0]


def _mixed_p95_s(parts: Sequence[VariantWork]) -> float:
    """The 95th percentile of a mixture of normal distributions, each with its part's mean and percentile."""
    p95s = [part.profile("", "").p95_s for part in parts]
    total = sum(part.count for part in parts)

    def below(value: float) -> float:
        return math.fsum(
            part.count / total * _below(value, part.mean_s, (p95_s - part.mean_s) / Z95)
            for part, p95_s in zip(parts, p95s, strict=True)
        )

    low, high = min(p95s), max(p95s)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < 0.95 else (low, middle)
    return high


def _below(value: float, mean: float, deviation: float) -> float:
    if deviation <= 0:  # a single call, or a percentile that its own mean exceeds
        return float(value >= mean)
    return NormalDist(mean, deviation).cdf(value)


def _pooled_interval(parts: Sequence[VariantWork], mean_s: float) -> tuple[float, float] | None:
    """Errors of independent means, weighted by their counts; None if no part brought an interval."""
    if all(part.mean_interval_s is None for part in parts):
        return None
    total = sum(part.count for part in parts)
    below = above = 0.0
    for part in parts:
        low, high = mean_interval_s(part)
        below = math.hypot(below, part.count / total * (part.mean_s - low))
        above = math.hypot(above, part.count / total * (high - part.mean_s))
    return max(0.0, mean_s - below), mean_s + above
