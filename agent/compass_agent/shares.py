"""What a worker gives to each query: the share it was told, and no more.

A share is a rate and a mean number of busy cores. Two token buckets hold a query to it: one counts
requests, the other core-seconds. A call reserves what calls of its query cost lately and is charged what
it took in the end, so that a query whose requests turn out dearer than planned is slowed down itself and
not its neighbours.

Requests come in bursts even at the right mean rate, so buckets fill a little faster than the share
(``HEADROOM``) and are deep enough (``BURST_S``, ``BURST_REQUESTS``) that Poisson arrivals at the
planned rate are hardly ever refused: fewer than one in a thousand. Sites are planned up to a utilisation
cap, 0.7 unless said, so that all shares fit into a site even with the headroom.

No clock is read here: every method takes ``now_s``.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from dataclasses import dataclass, field

from compass_shared.calls import CallHeader
from compass_shared.errors import RefusedError
from compass_shared.messages import ShareMessage
from compass_shared.pipeline import variant_key

HEADROOM = 1.25
"""How much faster than the share buckets fill."""
BURST_S = 5.0
"""What a full bucket holds, in seconds of the share..."""
BURST_REQUESTS = 16
"""...and at least in planned requests."""
GRACE_S = 30.0
"""How long calls under the share before the current one are still served: they were under way."""

_NEWEST = 0.1
"""Weight of the newest cost in the running mean."""
_REMEMBERED = 256
"""Requests whose further segments and attempts do not count as new ones."""


@dataclass(slots=True)
class _Bucket:
    """Fills at a rate up to a depth; may be overdrawn by what could not be known before."""

    rate: float
    """Per second."""
    depth: float
    level: float
    filled_s: float

    def short_s(self, amount: float, now_s: float) -> float:
        """Time until ``amount`` can be taken, 0 if it can be now; a full bucket gives any amount."""
        self.level = min(self.depth, self.level + self.rate * max(0.0, now_s - self.filled_s))
        self.filled_s = now_s
        return max(0.0, min(amount, self.depth) - self.level) / self.rate


@dataclass(slots=True)
class _Holding:
    """One share with its buckets."""

    share: ShareMessage
    compute: _Bucket
    """In core-seconds."""
    requests: _Bucket
    mean_cost_s: float
    """Core-seconds of a call, first as planned and then as measured."""
    seen: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Requests that were counted, the newest last."""


@dataclass(slots=True, kw_only=True)
class Ticket:
    """Leave to run one call; to be settled once."""

    holding: _Holding
    reserved_s: float
    """Core-seconds."""
    new_request: bool


class ShareTable:
    """The shares that a worker holds.

    Epochs order them: a lower coordinator epoch than any seen is refused, and so is an older share of a
    query. The one just superseded is honoured for ``GRACE_S``.
    """

    def __init__(self) -> None:
        self._current: dict[str, _Holding] = {}
        self._previous: dict[str, tuple[_Holding, float]] = {}
        """Query -> holding and the time until which it is honoured."""
        self._coordinator_epoch = 0

    @property
    def queries(self) -> tuple[str, ...]:
        """Queries that are served now."""
        return tuple(self._current)

    def current(self, query: str) -> ShareMessage | None:
        """The share of a query that is in force."""
        holding = self._current.get(query)
        return None if holding is None else holding.share

    def take(self, share: ShareMessage, now_s: float) -> str | None:
        """Serve a query up to this share from now on.

        Returns:
            None, or why it was refused.
        """
        if not (0 < share.rate_hz < float("inf") and 0 < share.cores < float("inf") and share.token):
            return "rate_hz and cores must be positive, and token must not be empty"
        if share.epoch.coordinator < self._coordinator_epoch:
            return f"coordinator epoch {share.epoch.coordinator} is older than {self._coordinator_epoch}"
        current = self._current.get(share.query)
        if current is not None and share.epoch < current.share.epoch:
            return f"superseded by {current.share.epoch.coordinator}.{current.share.epoch.sequence}"
        self._coordinator_epoch = share.epoch.coordinator
        if current is not None and share == current.share:
            return None  # the retained message came again: its buckets stay as they are
        self._retire(share.query, now_s)
        self._current[share.query] = _holding(share, now_s)
        return None

    def withdraw(self, query: str, now_s: float) -> None:
        """Stop serving a query, but for what is under way."""
        self._retire(query, now_s)

    def knows(self, query: str, token: str, now_s: float) -> bool:
        """Whether this is the token of a share that is in force or only just superseded."""
        previous, until_s = self._previous.get(query, (None, 0.0))
        honoured = (self._current.get(query), previous if now_s < until_s else None)
        return any(holding is not None and _same(holding.share.token, token) for holding in honoured)

    def admit(self, header: CallHeader, now_s: float) -> Ticket:
        """Leave for one call to run.

        Raises:
            RefusedError: Without ``retry_after_s`` if it was not assigned here, with it if the query is over
                its share for the moment.
        """
        holding = self._holding_for(header, now_s)
        new = header.request not in holding.seen
        over_s = max(
            holding.compute.short_s(holding.mean_cost_s, now_s),
            holding.requests.short_s(1.0, now_s) if new else 0.0,
        )
        if over_s > 0:
            raise RefusedError(f"query {header.query!r} is over its share", retry_after_s=over_s)
        ticket = Ticket(holding=holding, reserved_s=holding.mean_cost_s, new_request=new)
        holding.compute.level -= ticket.reserved_s
        if new:
            holding.requests.level -= 1.0
            holding.seen[header.request] = None
            if len(holding.seen) > _REMEMBERED:
                holding.seen.popitem(last=False)
        return ticket

    def settle(self, ticket: Ticket, busy_s: float | None) -> None:
        """Charge a call what it took.

        Args:
            ticket: From ``admit``.
            busy_s: Core-seconds, or None when it failed half-way: then it is charged what it reserved.
        """
        if busy_s is not None:
            holding = ticket.holding
            holding.compute.level += ticket.reserved_s - busy_s
            holding.mean_cost_s += (busy_s - holding.mean_cost_s) * _NEWEST

    def refund(self, ticket: Ticket, request: str) -> None:
        """Take back a ticket whose call never started."""
        ticket.holding.compute.level += ticket.reserved_s
        if ticket.new_request:
            ticket.holding.requests.level += 1.0
            ticket.holding.seen.pop(request, None)

    def _retire(self, query: str, now_s: float) -> None:
        if (current := self._current.pop(query, None)) is not None:
            self._previous[query] = (current, now_s + GRACE_S)
        self._previous = {name: kept for name, kept in self._previous.items() if kept[1] > now_s}

    def _holding_for(self, header: CallHeader, now_s: float) -> _Holding:
        holding = self._in_force(header, now_s)
        # The same words for an unknown query and a wrong token: a stranger learns nothing.
        if holding is None or not _same(holding.share.token, header.token):
            raise RefusedError(f"query {header.query!r} was not assigned here with this token and epoch")
        share = holding.share
        if (header.pipeline, header.digest) != (share.pipeline, share.digest):
            raise RefusedError(
                f"query {header.query!r} was assigned pipeline {share.pipeline!r} {share.digest[:12]}, "
                f"not {header.pipeline!r} {header.digest[:12]}"
            )
        for name in header.operators:
            variant = variant_key(name, header.knobs.get(name, {}))
            if variant not in share.variants:
                raise RefusedError(f"{variant} of query {header.query!r} was not assigned here")
        return holding

    def _in_force(self, header: CallHeader, now_s: float) -> _Holding | None:
        current = self._current.get(header.query)
        if current is not None and current.share.epoch == header.epoch:
            return current
        previous, until_s = self._previous.get(header.query, (None, 0.0))
        if previous is not None and previous.share.epoch == header.epoch and now_s < until_s:
            return previous
        return None


def _holding(share: ShareMessage, now_s: float) -> _Holding:
    planned_s = share.cores / share.rate_hz
    fill = share.cores * HEADROOM
    compute = max(fill * BURST_S, planned_s * BURST_REQUESTS)
    requests = max(share.rate_hz * HEADROOM * BURST_S, float(BURST_REQUESTS))
    return _Holding(
        share=share,
        compute=_Bucket(rate=fill, depth=compute, level=compute, filled_s=now_s),
        requests=_Bucket(rate=share.rate_hz * HEADROOM, depth=requests, level=requests, filled_s=now_s),
        mean_cost_s=planned_s,
    )


def _same(token: str, shown: str) -> bool:
    """Compare in a time that does not tell how much of a guess was right."""
    return hmac.compare_digest(token.encode("utf-8", "surrogatepass"), shown.encode("utf-8", "surrogatepass"))
