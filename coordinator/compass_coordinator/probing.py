"""Asking agents for probes: one message to an agent at a time, with patience, and not for ever."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compass_coordinator import events as ev
from compass_coordinator.fleet import AgentState, Fleet
from compass_coordinator.profiler.latency.completion import PROBES
from compass_coordinator.profiler.latency.next_probe import Wish
from compass_shared.messages import MAX_PROBES, ProbeMessage
from compass_shared.profile import SiteProfile
from compass_shared.topics import Kind

ANSWER_S = 120.0
"""An agent measures while nothing is asked of it; after this time it is not waited for any more."""
PAUSE_S, LONGEST_PAUSE_S = 60.0, 3600.0
"""From then until it is asked again; doubled every time that there was no answer."""
MOST_TRIES = 5
"""A variant that was not measured after so many is taken to be impossible there, until the agent restarts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What one agent has not answered yet."""

    pipeline: str
    variants: tuple[str, ...]
    since_s: float


class Probing:
    """Which agents were asked what.

    Args:
        fleet: Knows who is online and what was measured; is told what cannot be.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._wishes: dict[str, Wish] = {}
        """Site -> what is worth asking of it, since the last planning."""
        self._asked: dict[str, _Asked] = {}
        self._pauses: dict[str, tuple[float, float]] = {}
        """Site -> when it may be asked again, and how long the next pause is."""
        self._tries: dict[tuple[str, str, str], int] = {}
        """(Site, pipeline, variant) -> how often it was asked for in vain."""

    def wish(self, wishes: Iterable[Wish]) -> None:
        """Take what planning wants measured; what planning itself waits for comes first."""
        wanted = {query.pipeline for query in self._fleet.queries.values()}
        self._wishes = {wish.site: wish for wish in wishes}
        for (site, pipeline), lack in self._fleet.lacks.items():
            if lack.wanted and pipeline in wanted:
                self._wishes[site] = _urgent(site, pipeline, lack.wanted)
        for pipeline in sorted(wanted):
            if (wish := self._towards_reference(pipeline)) is not None:
                self._wishes[wish.site] = wish

    def _towards_reference(self, pipeline: str) -> Wish | None:
        """Where no site measured everything, the one that misses least does: all others follow from it."""
        missing = {
            site: tuple(key for key in self._fleet.missing(site, name) if key not in gap.hopeless)
            for (site, name), gap in self._fleet.gaps.items()
            if name == pipeline and gap.reference is None
        }
        able = [site for site, variants in missing.items() if variants]
        if not able:
            return None
        site = min(able, key=lambda site: (len(missing[site]), site))
        return _urgent(site, pipeline, missing[site][:PROBES])

    def due(self, now_s: float, epoch: int) -> list[ev.Action]:
        """Ask whoever may be asked now.

        Args:
            now_s: Monotonic seconds.
            epoch: Our coordinator epoch.
        """
        for site, asked in list(self._asked.items()):
            if not self._fleet.agent(site).online:
                del self._asked[site]
            elif now_s - asked.since_s >= ANSWER_S:
                self._in_vain(site, now_s)
        actions: list[ev.Action] = []
        for wish in self._wishes.values():
            state = self._fleet.agent(wish.site)
            variants = _open(state, wish)[:MAX_PROBES]
            paused_s = self._pauses.get(wish.site, (0.0, PAUSE_S))[0]
            if variants and state.online and wish.site not in self._asked and now_s >= paused_s:
                self._asked[wish.site] = _Asked(pipeline=wish.pipeline, variants=variants, since_s=now_s)
                message = ProbeMessage(
                    pipeline=wish.pipeline,
                    digest=self._fleet.pipelines[wish.pipeline].digest,
                    variants=variants,
                    epoch=epoch,
                )
                actions.append(ev.Send(kind=Kind.PROBE, agent=wish.site, message=message))
        return actions

    def measured(self, profile: SiteProfile) -> None:
        """A profile came, perhaps an answer: only one with something new of what was asked for is."""
        site, asked = profile.site, self._asked.get(profile.site)
        if asked is None or asked.pipeline != profile.pipeline:
            return
        missing = [variant for variant in asked.variants if variant not in profile.operators]
        if len(missing) < len(asked.variants):
            del self._asked[site]
            self._pauses.pop(site, None)
            self._count(site, asked.pipeline, missing)

    def _in_vain(self, site: str, now_s: float) -> None:
        asked = self._asked.pop(site)
        pause_s = self._pauses.get(site, (0.0, PAUSE_S))[1]
        self._pauses[site] = now_s + pause_s, min(2 * pause_s, LONGEST_PAUSE_S)
        self._count(site, asked.pipeline, asked.variants)

    def _count(self, site: str, pipeline: str, variants: Iterable[str]) -> None:
        """Note that variants were not measured though they were asked for."""
        hopeless = self._fleet.agent(site).hopeless
        for variant in variants:
            key = site, pipeline, variant
            self._tries[key] = self._tries.get(key, 0) + 1
            if self._tries[key] >= MOST_TRIES:
                del self._tries[key]
                hopeless[pipeline] = hopeless.get(pipeline, frozenset()) | {variant}


def _urgent(site: str, pipeline: str, variants: tuple[str, ...]) -> Wish:
    return Wish(site=site, pipeline=pipeline, variants=variants, stake=1.0, probe_s=0.0)


def _open(state: AgentState, wish: Wish) -> tuple[str, ...]:
    """What of a wish was neither measured nor given up."""
    profile = state.profiles.get(wish.pipeline)
    known = profile.operators if profile is not None else {}
    hopeless = state.hopeless.get(wish.pipeline, frozenset())
    return tuple(
        variant
        for variant in wish.variants
        if variant not in hopeless and (variant not in known or known[variant].count == 0)
    )
