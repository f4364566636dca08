"""Profiles of a fleet as a file: what agents measured or people wrote down, to plan from offline.

Work is given for single sites (``sites``, as the coordinator saves it) or for kinds of site (``kinds``): the
sites of a fleet file name their kind and differ from it by slowdowns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from compass_shared.errors import ProfileError
from compass_shared.figures import NotNegative, Positive
from compass_shared.files import write_atomically
from compass_shared.problem import Z95, Problem
from compass_shared.profile import OperatorProfile, Provenance, SiteProfile
from compass_shared.site import Link

SCHEMA = 1
MAX_FILE_BYTES = 64 * 1024 * 1024

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Calls = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
"""Serving counts them for months."""


class VariantWork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One operator variant: time of one call and size of what it returns."""

    mean_s: NotNegative
    output_mean_bytes: NotNegative
    """As sent, when the next operator runs elsewhere."""
    var_s2: NotNegative = 0.0
    """Variance over inputs and repeats: the square of the standard deviation."""
    p95_s: NotNegative | None = None
    """For people to read; None: of a normal distribution with this mean and variance."""
    count: Calls = 0
    """Measured calls; 0 for figures that nobody measured."""
    output_var_bytes2: NotNegative = 0.0
    speed_class: str = ""
    """What scales alike from site to site; empty: the operator's own, from pipeline.toml."""
    memory_bytes: NotNegative = 0.0
    """Room that the variant takes at a site, however many queries use it."""
    variant: str = ""
    """The key again, as agents write it."""
    mean_interval_s: tuple[NotNegative, NotNegative] | None = None
    """Low and high of the mean, where it is known how far it may be off."""
    p95_interval_s: tuple[NotNegative, NotNegative] | None = None
    """Low and high of the quantile."""
    items_mean: NotNegative | None = None
    """Items that a call worked through, of a fan-out; None where the operator is none."""
    items_var: NotNegative = 0.0
    item_s: NotNegative = 0.0
    """Time that one item more takes, as a part of ``mean_s``."""

    def profile(self, variant: str, speed_class: str) -> OperatorProfile:
        """The same as planners take it.

        Args:
            variant: Its key.
            speed_class: If it has none of its own.
        """
        return OperatorProfile(
            variant=variant,
            mean_s=self.mean_s,
            var_s2=self.var_s2,
            p95_s=self.mean_s + Z95 * self.var_s2**0.5 if self.p95_s is None else self.p95_s,
            count=self.count,
            output_mean_bytes=self.output_mean_bytes,
            output_var_bytes2=self.output_var_bytes2,
            speed_class=self.speed_class or speed_class,
            memory_bytes=self.memory_bytes,
            mean_interval_s=self.mean_interval_s,
            p95_interval_s=self.p95_interval_s,
            items_mean=self.items_mean,
            items_var=self.items_var,
            item_s=self.item_s,
        )


class KindWork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Work of one pipeline at sites of one kind."""

    kind: Text
    """What ``kind`` of ``[[sites]]`` names."""
    pipeline: Text
    operators: dict[str, VariantWork]
    """Variant key, ``detect[model=small,side=320]``, -> work; what is not listed cannot be chosen."""
    request_mean_bytes: NotNegative
    """Size of a request's own input."""
    request_var_bytes2: NotNegative = 0.0
    digest: str = ""
    """Of the pipeline that was measured; empty: not checked."""
    provenance: Provenance | None = None
    """What it was measured with."""


class SiteWork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Work of one pipeline at one site."""

    site: Text
    pipeline: Text
    operators: dict[str, VariantWork]
    """Variant key -> work."""
    request_mean_bytes: NotNegative
    request_var_bytes2: NotNegative = 0.0
    digest: str = ""
    emulated: str | None = None
    """Device profile that was emulated, or None for the machine itself."""
    slowdowns: dict[str, Positive] = {}
    """Speed class -> time here over the times above."""
    overhead_s: NotNegative = 0.0
    provenance: Provenance | None = None
    """What it was measured with."""

    def as_kind(self) -> KindWork | None:
        """The site as a kind, for others that are like it but faster or slower; None if it is itself so."""
        if self.slowdowns or self.overhead_s:
            return None
        return KindWork(
            kind=self.site,
            pipeline=self.pipeline,
            operators=self.operators,
            request_mean_bytes=self.request_mean_bytes,
            request_var_bytes2=self.request_var_bytes2,
            digest=self.digest,
            provenance=self.provenance,
        )

    @classmethod
    def of(cls, profile: SiteProfile) -> SiteWork:
        """The same as files have it."""
        operators = {key: VariantWork(**_fields(found)) for key, found in profile.operators.items()}
        return cls(**{**_fields(profile), "operators": operators, "slowdowns": dict(profile.slowdowns)})


class LinkFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One direction of the way between two sites."""

    source: Text
    target: Text
    rtt_s: NotNegative
    rtt_var_s2: NotNegative = 0.0
    bandwidth_bps: Positive
    """Bytes per second in this direction."""
    bandwidth_rel_sd: NotNegative = 0.0
    utilisation_cap: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.7

    def link(self) -> Link:
        """The same as planners take it."""
        return Link(**msgspec.structs.asdict(self))


class MeasurementsDocument(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The whole file."""

    schema: int
    kind: str
    """``measurements``."""
    provenance: dict[str, object] = {}
    """Where the figures come from, for people."""
    sites: tuple[SiteWork, ...] = ()
    links: tuple[LinkFigures, ...] = ()
    kinds: tuple[KindWork, ...] = ()

    def works(self) -> Iterator[KindWork]:
        """What ``kind`` of ``[[sites]]`` may name: a site that was measured itself, or a kind, which wins."""
        for site in self.sites:
            if (kind := site.as_kind()) is not None:
                yield kind
        yield from self.kinds


def save_measurements(path: Path, problem: Problem) -> None:
    """Write what a problem's sites and links measured, all of it or nothing."""
    document = MeasurementsDocument(
        schema=SCHEMA,
        kind="measurements",
        sites=tuple(SiteWork.of(profile) for profile in problem.profiles.values()),
        links=tuple(LinkFigures(**_fields(link)) for link in problem.links.values()),
    )
    save_document(path, document)


def save_document(path: Path, document: MeasurementsDocument) -> None:
    """Write measurements, all of them or nothing; fields at their defaults stay away."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def _fields(value: OperatorProfile | SiteProfile | Link) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def load_measurements(path: Path) -> MeasurementsDocument:
    """Read profiles.

    Raises:
        ProfileError: If they cannot be read.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ProfileError(f"{path}: larger than {MAX_FILE_BYTES} bytes; give --profiles several files")
        document = msgspec.json.decode(path.read_bytes(), type=MeasurementsDocument)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(f"{path}: {error}") from error
    if document.schema != SCHEMA or document.kind != "measurements":
        raise ProfileError(f"{path}: expected measurements of schema {SCHEMA}")
    _check_intervals(document, path)
    return document


def _check_intervals(document: MeasurementsDocument, path: Path) -> None:
    works: tuple[SiteWork | KindWork, ...] = (*document.sites, *document.kinds)
    for work in works:
        for key, found in work.operators.items():
            for low, high in filter(None, (found.mean_interval_s, found.p95_interval_s)):
                if low > high:
                    problem = f"an interval from {low} to {high} holds nothing"
                    raise ProfileError(f"{path}: [operators.{key}]: {problem}")


def operators_of(
    work: Mapping[str, VariantWork], speed_classes: Mapping[str, str]
) -> dict[str, OperatorProfile]:
    """Work by variant as planners take it.

    Args:
        work: Variant key -> figures.
        speed_classes: Variant key -> the operator's own speed class.
    """
    return {key: found.profile(key, speed_classes.get(key, "")) for key, found in work.items()}
