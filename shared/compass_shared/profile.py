"""What was measured: latency and sizes of operators at a site, accuracy of configs anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

CONFIDENCE = 0.95
"""What intervals hold with, where a file says nothing else."""
_Z95 = 1.645
"""Standard normal quantile, for times that did not vary when they were measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorProfile:
    """Measured latency and output size of one operator variant at one site.

    The spread is over inputs and repeats together: it is what a request will meet.
    """

    variant: str
    """Key from ``pipeline.variant_key``."""
    mean_s: float
    var_s2: float
    p95_s: float
    count: int
    output_mean_bytes: float
    output_var_bytes2: float = 0.0
    speed_class: str = ""
    """What scales alike from machine to machine (runtime, precision, bound by memory or arithmetic)."""
    memory_bytes: float = 0.0
    """What a site needs to hold the variant, however many queries use it; agents measure it roughly."""
    mean_interval_s: tuple[float, float] | None = None
    """Low and high of the mean, where it is known how far it may be off."""
    p95_interval_s: tuple[float, float] | None = None
    """Low and high of the quantile."""
    items_mean: float | None = None
    """Items that a call worked through, of a fan-out; None where the operator is none."""
    items_var: float = 0.0
    item_s: float = 0.0
    """Time that one item more takes, as a part of ``mean_s``: ``mean_s = constant + item_s * items_mean``."""

    def scaled(self, slowdown: float, overhead_s: float) -> OperatorProfile:
        """The same on a machine that takes ``slowdown`` times as long, plus a constant a call."""
        return replace(
            self,
            mean_s=slowdown * self.mean_s + overhead_s,
            var_s2=slowdown**2 * self.var_s2,
            p95_s=slowdown * self.p95_s + overhead_s,
            mean_interval_s=_scaled(self.mean_interval_s, slowdown, overhead_s),
            p95_interval_s=_scaled(self.p95_interval_s, slowdown, overhead_s),
            item_s=slowdown * self.item_s,
        )


def _scaled(
    interval: tuple[float, float] | None, slowdown: float, overhead_s: float
) -> tuple[float, float] | None:
    if interval is None:
        return None
    low, high = interval
    return slowdown * low + overhead_s, slowdown * high + overhead_s


def at_items(profile: OperatorProfile, mean: float, var: float) -> OperatorProfile:
    """A fan-out's figures where calls have another number of items than those it was measured with.

    A call takes a constant, ``item_s`` an item, and what varies beside (the residual, which stays as it was):
    by the law of total variance ``var_s2 = residual + item_s^2 * items_var``. The quantile stays as many
    standard deviations above the mean as it was.

    Args:
        profile: As measured. Where the time of an item is not known only the items change.
        mean: Mean number of items, >= 0.
        var: Its variance, >= 0.
    """
    if profile.items_mean is None:
        return profile
    if profile.item_s == 0:
        return replace(profile, items_mean=mean, items_var=var)
    added_s = profile.item_s * (mean - profile.items_mean)
    residual = max(0.0, profile.var_s2 - profile.item_s**2 * profile.items_var)
    var_s2 = residual + profile.item_s**2 * var
    before = profile.p95_s - profile.mean_s
    deviations = before / math.sqrt(profile.var_s2) if profile.var_s2 > 0 else _Z95
    mean_s = max(0.0, profile.mean_s + added_s)
    p95_s = max(0.0, mean_s + deviations * math.sqrt(var_s2))
    return replace(
        profile,
        mean_s=mean_s,
        var_s2=var_s2,
        p95_s=p95_s,
        mean_interval_s=_moved(profile.mean_interval_s, mean_s - profile.mean_s),
        p95_interval_s=_moved(profile.p95_interval_s, p95_s - profile.p95_s),
        items_mean=mean,
        items_var=var,
    )


def _moved(interval: tuple[float, float] | None, by_s: float) -> tuple[float, float] | None:
    if interval is None:
        return None
    low, high = interval
    return max(0.0, low + by_s), max(0.0, high + by_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a site's figures were measured with; a text that is not known stays empty."""

    device: str = ""
    """The machine, in words: processor, cores, threads a call."""
    date: str = ""
    """Day of the measurement, ``2026-11-23``."""
    compass: str = ""
    """Version of Compass."""
    runtimes: Mapping[str, str] = field(default_factory=dict)
    """Runtime -> name and version of the library behind it."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Model -> SHA-256 of the file that ran."""
    confidence: float = CONFIDENCE
    """What the intervals hold with."""
    sources: tuple[str, ...] = ()
    """The files that were merged, if any were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteProfile:
    """Every variant of one pipeline at one site: measured there, or on a machine that it is like.

    Sites of one kind share ``operators`` (the very same mapping, where there are thousands of them) and
    differ in how fast they are. ``measured`` gives the figures at this site.
    """

    site: str
    pipeline: str
    digest: str
    """Digest of the pipeline that was measured."""
    operators: Mapping[str, OperatorProfile]
    """Variant key -> measurement, on the machine that ``slowdowns`` compares with."""
    request_mean_bytes: float
    """Size of a request's own input."""
    request_var_bytes2: float = 0.0
    emulated: str | None = None
    """Name of the device profile that was emulated, or None for the machine itself."""
    slowdowns: Mapping[str, float] = field(default_factory=dict)
    """Speed class -> time here over time where it was measured; classes that are not listed take as long."""
    overhead_s: float = 0.0
    """Constant time of every operator call here."""
    provenance: Provenance | None = None
    """What it was measured with, where that was written down."""

    def measured(self, variant: str) -> OperatorProfile | None:
        """A variant's figures at this site, None if it was not measured."""
        found = self.operators.get(variant)
        if found is None:
            return None
        slowdown = self.slowdowns.get(found.speed_class, 1.0)
        return found if (slowdown, self.overhead_s) == (1.0, 0.0) else found.scaled(slowdown, self.overhead_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Mean score of one config over a named set of inputs."""

    mean: float
    standard_error: float
    """Of the mean; for a prediction its own standard deviation."""
    count: int
    """Inputs that were measured; 0 only for a prediction."""
    low: float | None = None
    """Lower end of an interval around the mean, at the table's confidence."""
    high: float | None = None
    """Its upper end; there are both or neither."""
    predicted: bool = False
    """Whether the mean was inferred from other configs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyTable:
    """Accuracy of the measured configs of one pipeline; the same on every site."""

    pipeline: str
    metric: str
    split: str
    configs: Mapping[str, Accuracy]
    """Config key -> accuracy."""
    confidence: float = CONFIDENCE
    """What each config's interval holds with."""
    inputs: int = 0
    """Inputs in the split, measured or not; 0 where nobody wrote it down."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Accuracy]] = field(default_factory=dict)
    """Extra metric -> config key -> its mean, of the configs that were measured."""


def lower_bound(table: AccuracyTable, z: float) -> AccuracyTable:
    """The accuracies that a table gives with confidence, rather than on average.

    A planner that takes the cheapest config above an accuracy SLO picks those that were lucky in the profile;
    planning on the one-sided bound ``mean - z * standard_error`` takes their luck away.

    Args:
        table: Measured means with standard errors.
        z: Standard normal quantile of the confidence, >= 0; 0 leaves the means as they are.

    Raises:
        ValueError: If ``z`` is negative.
    """
    if not z >= 0:
        raise ValueError(f"z must be >= 0, got {z}")

    def lowered(configs: Mapping[str, Accuracy]) -> dict[str, Accuracy]:
        return {
            key: replace(found, mean=max(0.0, found.mean - z * found.standard_error))
            for key, found in configs.items()
        }

    others = {metric: lowered(configs) for metric, configs in table.others.items()}
    return replace(table, configs=lowered(table.configs), others=others)


def meeting(table: AccuracyTable, floors: Mapping[str, float]) -> AccuracyTable:
    """The configs whose extra metrics reach these floors; without floors the table itself.

    Args:
        table: All configs.
        floors: Extra metric -> least mean. A config in which one was not measured does not reach it.
    """
    if not floors:
        return table

    def reaches(key: str) -> bool:
        known = [table.others.get(metric, {}).get(key) for metric in floors]
        return all(
            found is not None and found.mean >= least
            for found, least in zip(known, floors.values(), strict=True)
        )

    return replace(table, configs={key: found for key, found in table.configs.items() if reaches(key)})
