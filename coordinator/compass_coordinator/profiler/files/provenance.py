"""How profiles came about: what two say differently, and what a merge of several can still say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compass_coordinator.measurements import KindWork, SiteWork
from compass_shared.errors import ProfileError
from compass_shared.profile import Provenance

Work = SiteWork | KindWork


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenanceChange:
    """Something that two profiles say differently of how they came about."""

    what: str
    before: str
    after: str
    decisive: bool = False
    """Whether the two measured different things (models, digest), whatever their figures."""


def provenance_changes(
    before: Mapping[str, object], after: Mapping[str, object]
) -> Iterator[ProvenanceChange]:
    """What two files' provenance says differently: models and runtimes one by one, else field by field."""
    for key in dict.fromkeys([*before, *after]):
        one, other = before.get(key), after.get(key)
        if one == other:
            continue
        if key in {"models", "runtimes"} and isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _entries(key, one, other)
        else:
            yield ProvenanceChange(what=key, before=_short(one), after=_short(other))


def measured_with(where: str, one: Work, other: Work) -> Iterator[ProvenanceChange]:
    """What two measurements of one site or kind of site say differently, figures aside.

    Args:
        where: The site, in words.
        one: The earlier one.
        other: The later one.
    """
    if one.digest and other.digest and one.digest != other.digest:
        yield ProvenanceChange(what=f"{where}: digest", before=one.digest, after=other.digest, decisive=True)
    if isinstance(one, SiteWork) and isinstance(other, SiteWork) and one.emulated != other.emulated:
        yield ProvenanceChange(
            what=f"{where}: emulated",
            before=one.emulated or "the machine itself",
            after=other.emulated or "the machine itself",
            decisive=True,
        )
    for said in provenance_changes(_plain(one.provenance), _plain(other.provenance)):
        yield ProvenanceChange(
            what=f"{where}: {said.what}", before=said.before, after=said.after, decisive=said.decisive
        )


def sources_of(work: Work, file: str) -> tuple[str, ...]:
    """Files that a work was merged from, itself if it was not."""
    return (work.provenance.sources if work.provenance is not None else ()) or (file,)


def merged_site_provenance(parts: Sequence[tuple[str, Work]], *, force: bool) -> Provenance:
    """What can be said of several measurements of one site together.

    Args:
        parts: File -> measurement.
        force: Whether to merge what was measured on different devices or runtimes; then all are named.

    Returns:
        Provenance in which every text is that of the parts that know it.

    Raises:
        ProfileError: If models differ, or without ``force`` devices or runtimes.
    """
    known = [(file, work.provenance) for file, work in parts if work.provenance is not None]
    models: dict[str, str] = {}
    runtimes: dict[str, str] = {}
    for file, found in known:
        for name, sha256 in found.models.items():
            if models.setdefault(name, sha256) != sha256:
                raise ProfileError(
                    f"{file}: measured with model {name!r} {sha256}, others with {models[name]}"
                )
        for name, version in found.runtimes.items():
            runtimes[name] = _one_of(
                file, f"runtime {name!r}", (runtimes.get(name, ""), version), force=force
            )
    device = ""
    for file, found in known:
        device = _one_of(file, "device", (device, found.device), force=force)
    return Provenance(
        device=device,
        date=max((found.date for _, found in known), default=""),
        compass=_joined([found.compass for _, found in known]),
        runtimes=runtimes,
        models=models,
        confidence=_confidence(parts),
        sources=tuple(dict.fromkeys(source for file, work in parts for source in sources_of(work, file))),
    )


def merged_table_provenance(parts: Sequence[tuple[str, Mapping[str, object]]]) -> dict[str, object]:
    """What can be said of several tables or documents together.

    Args:
        parts: File -> its provenance.

    Returns:
        What all say alike, the latest date, every model, and under ``sources`` what each file says otherwise.

    Raises:
        ProfileError: If a model was another file in one of them.
    """
    models: dict[str, object] = {}
    for file, said in parts:
        named = said.get("models")
        for name, sha256 in named.items() if isinstance(named, Mapping) else ():
            if models.setdefault(name, sha256) != sha256:
                raise ProfileError(
                    f"{file}: measured with model {name!r} {sha256}, the other tables with {models[name]}; "
                    "merge tables of the same models, or measure again"
                )
    first = parts[0][1]
    alike = {
        key: value
        for key, value in first.items()
        if key not in {"models", "sources"} and all(said.get(key) == value for _, said in parts)
    }
    dates = [str(said["date"]) for _, said in parts if "date" in said]
    sources: dict[str, dict[str, object]] = {}
    for file, said in parts:
        for source in _told(file, said, alike):
            sources.setdefault(str(source["file"]), source)
    return {
        **({"date": max(dates)} if dates else {}),
        **alike,
        **({"models": models} if any("models" in said for _, said in parts) else {}),
        "sources": list(sources.values()),
    }


def _told(file: str, said: Mapping[str, object], alike: Mapping[str, object]) -> Iterator[dict[str, object]]:
    earlier = said.get("sources")
    if isinstance(earlier, Sequence) and all(
        isinstance(each, Mapping) and "file" in each for each in earlier
    ):
        yield from (dict(each) for each in earlier)
        return
    yield {"file": file, **{key: value for key, value in said.items() if key not in {*alike, "models"}}}


def _one_of(file: str, what: str, found: tuple[str, str], *, force: bool) -> str:
    earlier, later = found
    if not force and earlier and later and earlier != later:
        raise ProfileError(
            f"{file}: measured with {what} {later!r}, the others with {earlier!r}; --force merges them anyway"
        )
    return _joined([earlier, later])


def _joined(texts: Sequence[str]) -> str:
    """Each text once, those that were joined before taken apart."""
    return "; ".join(dict.fromkeys(part for text in texts if text for part in text.split("; ")))


def _confidence(parts: Sequence[tuple[str, Work]]) -> float:
    """The confidence of all intervals, of which there may be none."""
    found = {
        (work.provenance or Provenance()).confidence
        for _, work in parts
        if any(variant.mean_interval_s or variant.p95_interval_s for variant in work.operators.values())
    }
    if len(found) > 1:
        listed = " and ".join(f"{value:g}" for value in sorted(found))
        raise ProfileError(f"intervals at confidence {listed} cannot be merged; measure one of them again")
    return found.pop() if found else Provenance().confidence


def _plain(provenance: Provenance | None) -> dict[str, object]:
    found = provenance or Provenance()
    return {
        "device": found.device,
        "date": found.date,
        "compass": found.compass,
        "runtimes": found.runtimes,
        "models": found.models,
        "sources": found.sources,
    }


def _entries(
    key: str, one: Mapping[object, object], other: Mapping[object, object]
) -> Iterator[ProvenanceChange]:
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            yield ProvenanceChange(
                what=f"{key}.{name}",
                before=_short(one.get(name)),
                after=_short(other.get(name)),
                decisive=key == "models" and name in one and name in other,
            )


def _short(value: object) -> str:
    """A value in a few words: long tables of costs and counts are of no use in a diff."""
    if value is None:
        return ""
    if isinstance(value, Mapping | list | tuple):
        return f"{len(value)} entries"
    return str(value)
