"""One profile of several: ``compass profile merge``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from compass_coordinator.measurements import (
    SCHEMA,
    KindWork,
    LinkFigures,
    MeasurementsDocument,
    SiteWork,
    VariantWork,
)
from compass_coordinator.profiler.files.differing import variant_differences, works_of
from compass_coordinator.profiler.files.pooling import moments, pooled
from compass_coordinator.profiler.files.provenance import (
    Work,
    merged_site_provenance,
    merged_table_provenance,
    sources_of,
)
from compass_coordinator.profiler.files.uncertainty import accuracy_interval
from compass_shared.errors import ProfileError
from compass_shared.profile import Accuracy, AccuracyTable


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedAccuracy:
    """A table of several."""

    table: AccuracyTable
    disagreements: tuple[str, ...]
    """Configs whose intervals in two tables do not touch, and other code of operators, in words."""


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
    disagreements = _other_code(tables)
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
    merged = replace(tables[0][1], configs=configs, provenance=provenance, others=_others(tables))
    return MergedAccuracy(table=merged, disagreements=tuple(disagreements))


def _others(tables: Sequence[tuple[str, AccuracyTable]]) -> dict[str, dict[str, Accuracy]]:
    """Extra metrics, of every config the better known entry."""
    found: dict[str, dict[str, Accuracy]] = {}
    for _, table in tables:
        for metric, configs in table.others.items():
            best = found.setdefault(metric, {})
            for key, entry in configs.items():
                best[key] = max(entry, best.get(key, entry), key=_known)
    return found


def _other_code(tables: Sequence[tuple[str, AccuracyTable]]) -> list[str]:
    """Tables whose operators had other code than the first one's, which may or may not score the same."""
    named = [
        (file, code) for file, table in tables if (code := table.provenance.get("code_sha256")) is not None
    ]
    return [
        f"the operators' code was {code} in {file}, {named[0][1]} in {named[0][0]}: do they score alike?"
        for file, code in named
        if code != named[0][1]
    ]


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
    request, request_var = moments(
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
