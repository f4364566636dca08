"""What differs between two profiles by more than chance: ``compass profile diff``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from compass_coordinator.measurements import (
    KindWork,
    LinkFigures,
    MeasurementsDocument,
    SiteWork,
    VariantWork,
)
from compass_coordinator.profiler.files.provenance import ProvenanceChange, measured_with, provenance_changes
from compass_coordinator.profiler.files.uncertainty import (
    Interval,
    accuracy_interval,
    difference_allowed,
    mean_interval_s,
    output_interval_bytes,
    p95_interval_s,
    two_sided_z,
)
from compass_shared.errors import ProfileError
from compass_shared.problem import Z95
from compass_shared.profile import CONFIDENCE, Accuracy, AccuracyTable

_ROUNDING = 2e-6
"""Files keep six decimals; exact accuracies may differ by as much without meaning anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure that changed by more than its uncertainty."""

    where: str
    """Config key, variant at a site, or link."""
    figure: str
    """Field of the file."""
    before: float
    after: float
    allowed: float
    """Difference that chance explains, with all comparisons of the diff in mind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """All that two profiles of one kind do not share."""

    compared: int
    """Figures that both have."""
    changed: tuple[Change, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    provenance: tuple[ProvenanceChange, ...]

    @property
    def same(self) -> bool:
        """Whether they say the same within their uncertainty; dates and versions may differ."""
        return not (
            self.changed or self.added or self.removed or any(said.decisive for said in self.provenance)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """A figure with where it lies at ``confidence``."""

    value: float
    interval: Interval
    confidence: float = CONFIDENCE


_Figures = Mapping[str, Mapping[str, _Figure]]
"""Where -> field -> figure."""


def accuracy_differences(
    before: AccuracyTable, after: AccuracyTable, *, tolerance: float = 0.0
) -> Differences:
    """Compare two accuracy tables of one pipeline, metric and split.

    Args:
        before: The earlier one.
        after: The later one.
        tolerance: Share of a figure by which it may change besides.

    Raises:
        ProfileError: If they measure different things.
    """
    for field in ("pipeline", "metric", "split"):
        one, other = getattr(before, field), getattr(after, field)
        if one != other:
            raise ProfileError(f"{field} {one!r} and {field} {other!r} cannot be compared")
    return _differences(
        _accuracies(before),
        _accuracies(after),
        tuple(provenance_changes(before.provenance, after.provenance)),
        tolerance,
        rounding=_ROUNDING,
    )


def measurement_differences(
    before: MeasurementsDocument, after: MeasurementsDocument, *, tolerance: float = 0.0
) -> Differences:
    """Compare measurements: every variant at every site and kind of site, and every link.

    Args:
        before: The earlier ones.
        after: The later ones.
        tolerance: Share of a figure by which it may change besides.
    """
    works, others = works_of(before), works_of(after)
    provenance = [
        change for key in works if key in others for change in measured_with(key, works[key], others[key])
    ]
    return _differences(_works(before), _works(after), tuple(provenance), tolerance)


def works_of(document: MeasurementsDocument) -> dict[str, SiteWork | KindWork]:
    """Work of a document by where it was measured, in words."""
    kinds = {f"kind {work.kind}, {work.pipeline}": work for work in document.kinds}
    return {**kinds, **{f"site {work.site}, {work.pipeline}": work for work in document.sites}}


def variant_differences(before: VariantWork, after: VariantWork) -> tuple[str, ...]:
    """Fields of one variant that two measurements do not agree on."""
    found = _differences(
        {"": _variant(before, CONFIDENCE, 1.0, 0.0)}, {"": _variant(after, CONFIDENCE, 1.0, 0.0)}, (), 0.0
    )
    return tuple(change.figure for change in found.changed)


def _differences(
    before: _Figures,
    after: _Figures,
    provenance: tuple[ProvenanceChange, ...],
    tolerance: float,
    *,
    rounding: float = 0.0,
) -> Differences:
    pairs = [
        (where, name, figure, after[where][name])
        for where, figures in before.items()
        if where in after
        for name, figure in figures.items()
        if name in after[where]
    ]
    changed = []
    for where, name, one, other in pairs:
        allowed = difference_allowed(
            one.value, _widened(one, len(pairs)), other.value, _widened(other, len(pairs))
        )
        allowed = max(allowed, tolerance * abs(one.value), rounding, 1e-9 * abs(one.value))
        if abs(other.value - one.value) > allowed:
            changed.append(
                Change(where=where, figure=name, before=one.value, after=other.value, allowed=allowed)
            )
    return Differences(
        compared=len(pairs),
        changed=tuple(changed),
        added=tuple(where for where in after if where not in before),
        removed=tuple(where for where in before if where not in after),
        provenance=provenance,
    )


def _widened(figure: _Figure, comparisons: int) -> Interval:
    """The interval that holds for ``comparisons`` figures at once (Bonferroni, normal errors).

    Of 300 intervals at 95%, 15 miss without anything having changed.
    """
    low, high = figure.interval
    together = 1 - (1 - CONFIDENCE) / comparisons
    factor = two_sided_z(together) / two_sided_z(figure.confidence)
    return figure.value - factor * (figure.value - low), figure.value + factor * (high - figure.value)


def _accuracies(table: AccuracyTable) -> _Figures:
    return {
        key: {
            "mean": _accuracy(found, table),
            **{
                f"others.{metric}": _accuracy(configs[key], table)
                for metric, configs in table.others.items()
                if key in configs
            },
        }
        for key, found in table.configs.items()
    }


def _accuracy(found: Accuracy, table: AccuracyTable) -> _Figure:
    return _Figure(value=found.mean, interval=accuracy_interval(found, table), confidence=table.confidence)


def _works(document: MeasurementsDocument) -> _Figures:
    figures: dict[str, Mapping[str, _Figure]] = {}
    for where, work in works_of(document).items():
        confidence = work.provenance.confidence if work.provenance is not None else CONFIDENCE
        for key, found in work.operators.items():
            slowdown = work.slowdowns.get(found.speed_class, 1.0) if isinstance(work, SiteWork) else 1.0
            overhead_s = work.overhead_s if isinstance(work, SiteWork) else 0.0
            figures[f"{where}: {key}"] = _variant(found, confidence, slowdown, overhead_s)
    for link in document.links:
        figures[f"link {link.source} > {link.target}"] = _link(link)
    return figures


def _variant(work: VariantWork, confidence: float, slowdown: float, overhead_s: float) -> dict[str, _Figure]:
    p95_s = work.profile("", "").p95_s
    items = {} if work.items_mean is None else {"items_mean": _items(work, work.items_mean, confidence)}
    return {
        **items,
        "mean_s": _scaled(work.mean_s, mean_interval_s(work, confidence), slowdown, overhead_s, confidence),
        "p95_s": _scaled(p95_s, p95_interval_s(work, p95_s, confidence), slowdown, overhead_s, confidence),
        "output_mean_bytes": _Figure(
            value=work.output_mean_bytes,
            interval=output_interval_bytes(work, confidence),
            confidence=confidence,
        ),
    }


def _items(work: VariantWork, mean: float, confidence: float) -> _Figure:
    half = two_sided_z(confidence) * math.sqrt(work.items_var / work.count) if work.count else 0.0
    return _Figure(value=mean, interval=(mean - half, mean + half), confidence=confidence)


def _scaled(
    value: float, interval: Interval, slowdown: float, overhead_s: float, confidence: float
) -> _Figure:
    low, high = interval
    return _Figure(
        value=slowdown * value + overhead_s,
        interval=(slowdown * low + overhead_s, slowdown * high + overhead_s),
        confidence=confidence,
    )


def _link(link: LinkFigures) -> dict[str, _Figure]:
    """A link's spread stands for its uncertainty: how often it was measured is not kept."""
    rtt_half, share = Z95 * link.rtt_var_s2**0.5, Z95 * link.bandwidth_rel_sd
    low, high = link.bandwidth_bps * (1 - share), link.bandwidth_bps * (1 + share)
    return {
        "rtt_s": _Figure(
            value=link.rtt_s, interval=(link.rtt_s - rtt_half, link.rtt_s + rtt_half), confidence=0.9
        ),
        "bandwidth_bps": _Figure(value=link.bandwidth_bps, interval=(low, high), confidence=0.9),
    }
