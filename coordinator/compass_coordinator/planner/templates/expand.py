"""Growing labels by one block: every variant of its operators at every combination of roles.

What a block adds is worked out once per shape (a role for the waist before it and for each of its
operators) and shared by all labels; only the bytes of the value that comes from before the block, and squares
of sums that it is part of, are the label's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.dominance import Mask
from compass_coordinator.planner.templates.blocks import Block, Shape, shape
from compass_coordinator.planner.templates.columns import Quantity
from compass_coordinator.planner.templates.labels import Labels, worst_paths
from compass_coordinator.planner.templates.tables import OperatorTable, Tables
from compass_shared.segments import Segment

PART = 100_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Transfer:
    """Bytes over one link in one direction, of which the carried value is part."""

    role: int
    up: bool
    others_bytes: Floats
    """(c,) mean of the other values sent with it."""
    ways: Mask
    """(p,) paths that it lies on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Addition:
    """What a shape adds for c combinations of its operators' variants; p paths go through it."""

    shape: Shape
    chosen: Indices
    """(c, operators) variant of each."""
    number: Indices
    """(c,) of the combination among all, measured here or not."""
    combinations: int
    """How many there are in all."""
    totals: Floats
    """(c, T)."""
    ways: Floats
    """(p, c, F)."""
    transfers: tuple[_Transfer, ...]
    out_mean_bytes: Floats
    """(c,) of the last operator."""
    out_var_bytes2: Floats
    """(c,)."""


def grown(tables: Tables, block: Block, labels: Labels, max_remote: int, choosable: Mask) -> Iterator[Labels]:
    """Labels after a block, by shape, some ``PART`` at a time at most.

    Args:
        tables: Figures of the pipeline.
        block: What to add.
        labels: Those before it, all with one role for the waist.
        max_remote: Remote roles that a plan may use.
        choosable: (configs up to the block's end,) whether the accuracy table has a config that begins so.
    """
    base_role = int(labels.placement[0, -1]) if labels.placement.shape[1] else 0
    patterns, pattern = np.unique(labels.used, return_inverse=True)
    for roles in itertools.product(range(len(tables.kinds)), repeat=len(block.operators)):
        after = [used_after(tables, int(used), roles, max_remote) for used in patterns]
        if all(used is None for used in after):
            continue
        addition = _addition(tables, block, shape(block, base_role, roles))
        allowed = np.array([used is not None for used in after])
        rows = np.flatnonzero(allowed[pattern])
        used = np.array([used or 0 for used in after], dtype=np.int64)[pattern[rows]]
        step = max(1, PART // max(1, len(addition.number)))
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            made = _combined(tables, labels.take(rows[part]), used[part], addition, choosable)
            if len(made):
                yield made


def used_after(tables: Tables, used: int, roles: Sequence[int], max_remote: int) -> int | None:
    """Remote roles in use after some operators got roles; None if these roles are not allowed.

    Of remote roles of one kind the first free one stands for all of them.
    """
    keys = [kind.key for kind in tables.kinds]
    for role in roles:
        if role > 0 and not used >> (role - 1) & 1:
            earlier = [other for other in range(1, role) if keys[other] == keys[role]]
            if not all(used >> (other - 1) & 1 for other in earlier):
                return None
            used |= 1 << (role - 1)
    return used if bin(used).count("1") <= max_remote else None


def _addition(tables: Tables, block: Block, placed: Shape) -> _Addition:
    names = [op.name for op in block.operators]
    found = {name: tables.operators[name, role] for name, role in zip(names, placed.roles, strict=True)}
    counts = [len(found[name].measured) for name in names]
    everything = np.indices(counts).reshape(len(counts), -1)
    number = np.flatnonzero(
        np.logical_and.reduce([found[name].measured[at] for name, at in zip(names, everything, strict=True)])
    )
    chosen = dict(zip(names, everything[:, number], strict=True))
    worker = _Worker(tables=tables, block=block, shape=placed, found=found, chosen=chosen)
    steps = [worker.segment(segment) for segment in placed.segments]
    total = np.sum([step for step, _ in steps], axis=0)
    last = found[names[-1]]
    return _Addition(
        shape=placed,
        chosen=everything[:, number].T,
        number=number,
        combinations=everything.shape[1],
        totals=total[:, tables.total_of],
        ways=np.array([np.sum([steps[at][0] for at in way], axis=0) for way in placed.ways]),
        transfers=tuple(transfer for _, transfers in steps for transfer in transfers),
        out_mean_bytes=last.out_mean_bytes[chosen[names[-1]]],
        out_var_bytes2=last.out_var_bytes2[chosen[names[-1]]],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Worker:
    """Adds up the segments of one shape."""

    tables: Tables
    block: Block
    shape: Shape
    found: dict[str, OperatorTable]
    chosen: dict[str, Indices]

    def segment(self, segment: Segment) -> tuple[Floats, list[_Transfer]]:
        """(c, F) that a segment adds to its paths, and what depends on the label besides."""
        role = int(segment.site)
        old = self.block.base is not None and self.block.base.name in segment.operators
        count = len(next(iter(self.chosen.values())))
        features = np.zeros((count, len(self.tables.columns)))
        for name in segment.operators:
            if name in self.found:
                features += self.found[name].features[self.chosen[name]]
        if not old:
            features[:, self.tables.at(role, Quantity.VISITS)] += 1
        if role == 0:
            return features, []
        # What the waist's segment needs was sent to it before the block.
        moves = [(segment.exports, False)] if old else [(segment.needs, True), (segment.exports, False)]
        transfers = [self._transfer(features, segment, values, up=up) for values, up in moves]
        return features, [transfer for transfer in transfers if transfer is not None]

    def _sizes(self, values: Sequence[str]) -> tuple[Floats, Floats]:
        """Mean and variance (c,) of the block's own values among these, together."""
        own = [(self.found[name], self.chosen[name]) for name in values if name in self.found]
        nothing = np.zeros(len(next(iter(self.chosen.values()))))
        mean = sum((table.out_mean_bytes[chosen] for table, chosen in own), nothing)
        var = sum((table.out_var_bytes2[chosen] for table, chosen in own), nothing)
        return mean, var

    def _transfer(
        self, features: Floats, segment: Segment, values: Sequence[str], *, up: bool
    ) -> _Transfer | None:
        """Add what is known of a transfer to the features; the transfer itself if there is more to it."""
        mean, var, square = _transfer_columns(self.tables, int(segment.site), up=up)
        mean_bytes, var_bytes2 = self._sizes(values)
        features[:, mean] += mean_bytes
        features[:, var] += var_bytes2
        if self.block.carried not in values:
            features[:, square] += mean_bytes**2
            return None
        ways = np.array([segment.index in way for way in self.shape.ways])
        return _Transfer(role=int(segment.site), up=up, others_bytes=mean_bytes, ways=ways)


def _transfer_columns(tables: Tables, role: int, *, up: bool) -> tuple[int, int, int]:
    if up:
        return tables.at(role, Quantity.UP), tables.at(role, Quantity.UP_VAR), tables.at(role, Quantity.UP_SQ)
    return (
        tables.at(role, Quantity.DOWN),
        tables.at(role, Quantity.DOWN_VAR),
        tables.at(role, Quantity.DOWN_SQ),
    )


def _combined(tables: Tables, labels: Labels, used: Indices, addition: _Addition, choosable: Mask) -> Labels:
    """Every label with every combination, as far as some config in the accuracy table begins so."""
    config = labels.config[:, np.newaxis] * addition.combinations + addition.number
    one, other = np.nonzero(choosable[config])
    totals = labels.totals[one] + addition.totals[other]
    paths = np.stack([path[one] + way[other] for path in labels.paths for way in addition.ways])
    for transfer in addition.transfers:
        _carry(tables, labels, one, other, transfer, totals, paths)
    roles = np.array(addition.shape.roles, dtype=np.int8)
    return Labels(
        placement=np.hstack([labels.placement[one], np.broadcast_to(roles, (len(one), len(roles)))]),
        variants=np.hstack([labels.variants[one], addition.chosen[other].astype(np.int16)]),
        config=config[one, other],
        used=used[one],
        totals=totals,
        paths=worst_paths(paths),
        out_mean_bytes=addition.out_mean_bytes[other],
        out_var_bytes2=addition.out_var_bytes2[other],
    )


def _carry(
    tables: Tables,
    labels: Labels,
    one: Indices,
    other: Indices,
    transfer: _Transfer,
    totals: Floats,
    paths: Floats,
) -> None:
    """Add to totals and paths what a transfer depends on the label for."""
    mean, var, square = _transfer_columns(tables, transfer.role, up=transfer.up)
    carried = labels.out_mean_bytes[one]
    lies_on = np.flatnonzero(np.tile(transfer.ways, len(labels.paths)))[:, np.newaxis]
    rows = np.arange(len(one))
    paths[lies_on, rows, mean] += carried
    paths[lies_on, rows, var] += labels.out_var_bytes2[one]
    paths[lies_on, rows, square] += (transfer.others_bytes[other] + carried) ** 2
    totals[:, tables.total_of.index(mean)] += carried
