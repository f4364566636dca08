"""When the requests of a driven query come and what they carry: the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from compass_shared.query import Query


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request to come."""

    at_s: float
    """From the start of the phase."""
    index: int
    """Which of the query's requests it is."""
    example: int
    """Which input it carries, or is part of."""
    step: int = 0
    """Of a clip: which of its requests it is."""


def arrivals(query: Query, *, seconds: float, seed: int, groups: Sequence[str]) -> list[Arrival]:
    """The requests of one query that come as a Poisson process, one input each.

    Args:
        query: Its rate counts.
        seconds: How long to send.
        seed: Draws times and inputs.
        groups: Group of every input; each round of inputs takes the groups in turn, so that even a few
            requests see every group in proportion.
    """
    rng, order = _draws(query, seed, groups)
    found: list[Arrival] = []
    at_s = rng.expovariate(query.rate_hz)
    while at_s < seconds:
        found.append(Arrival(at_s=at_s, index=len(found), example=order[len(found) % len(order)]))
        at_s += rng.expovariate(query.rate_hz)
    return found


def clip_arrivals(
    query: Query, *, seconds: float, seed: int, groups: Sequence[str], lengths: Sequence[int]
) -> list[Arrival]:
    """The requests of one query that plays clip after clip, evenly spaced as a camera's frames are.

    The first comes within one interval, so that cameras do not all look at the same moment.

    Args:
        query: Its rate counts.
        seconds: How long to send; the last clip may be cut short.
        seed: Draws the first moment and the order of clips.
        groups: Group of every clip, see ``arrivals``.
        lengths: Requests of every clip.
    """
    rng, order = _draws(query, seed, groups)
    one_round = [(clip, step) for clip in order for step in range(lengths[clip])]
    offset_s = rng.random() / query.rate_hz
    found: list[Arrival] = []
    while one_round and (at_s := offset_s + len(found) / query.rate_hz) < seconds:
        clip, step = one_round[len(found) % len(one_round)]
        found.append(Arrival(at_s=at_s, index=len(found), example=clip, step=step))
    return found


def _draws(query: Query, seed: int, groups: Sequence[str]) -> tuple[random.Random, list[int]]:
    """What draws times, and the order of inputs."""
    rng = random.Random(f"{seed}/{query.name}")  # noqa: S311  # a repeatable draw, not a secret
    # Of its own, so that when requests come does not depend on what they carry.
    order = _in_turns(groups, random.Random(f"{seed}/{query.name}/inputs"))  # noqa: S311
    return rng, order


def _in_turns(groups: Sequence[str], rng: random.Random) -> list[int]:
    """Indices in a random order in which every stretch holds each group about as often as all do."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    spread: list[tuple[float, int]] = []
    for indices in members.values():
        rng.shuffle(indices)
        shift = rng.random()
        spread.extend(((rank + shift) / len(indices), index) for rank, index in enumerate(indices))
    return [index for _, index in sorted(spread)]
