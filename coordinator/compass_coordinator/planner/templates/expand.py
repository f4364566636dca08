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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Transfer:
    """Bytes over one link in one direction, of which the carried value is part for every label."""

    role: int
    up: bool
    others_bytes: Floats
    """(c,) mean of the other values sent with it."""
    carries: bool
    """Whether the carried value is among them."""
    after_sent: bool
    """Whether it adds to what the waist's segment already sends (the segment went on into this block)."""
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
    sent_bytes: Floats
    """(c,) that the last operator's segment sends to the origin, its own and the carried value aside."""
    same_segment: bool
    """Whether the last operator is still in the segment of the waist before the block."""
    carried_sent: bool
    """Whether that segment then sends the carried value."""


def grown(tables: Tables, block: Block, labels: Labels, max_remote: int, choosable: Mask) -> Iterator[Labels]:
    """Labels after a block, by shape.

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
        made = _combined(tables, labels.take(rows), used, addition, choosable)
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
    end = next(segment for segment in placed.segments if names[-1] in segment.operators)
    same_segment = block.base is not None and block.base.name in end.operators
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
        sent_bytes=worker.mean_bytes(end.exports if end.site != "0" else ()),
        same_segment=same_segment,
        carried_sent=same_segment and end.site != "0" and block.carried in end.exports,
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
        transfers = []
        if role > 0:
            # What the waist's segment needs was sent to it before the block.
            needs = () if old else segment.needs
            transfers = [
                self._transfer(features, segment, values, up=up, after_sent=old)
                for values, up in ((needs, True), (segment.exports, False))
                if values
            ]
        return features, [transfer for transfer in transfers if transfer.carries or transfer.after_sent]

    def mean_bytes(self, values: Sequence[str]) -> Floats:
        """(c,) of the block's own values among these."""
        sizes = [self.found[name].out_mean_bytes[self.chosen[name]] for name in values if name in self.found]
        return np.asarray(sum(sizes, np.zeros(len(next(iter(self.chosen.values()))))))

    def _var_bytes2(self, values: Sequence[str]) -> Floats:
        sizes = [self.found[name].out_var_bytes2[self.chosen[name]] for name in values if name in self.found]
        return np.asarray(sum(sizes, np.zeros(len(next(iter(self.chosen.values()))))))

    def _transfer(
        self, features: Floats, segment: Segment, values: Sequence[str], *, up: bool, after_sent: bool
    ) -> _Transfer:
        role = int(segment.site)
        transfer = _Transfer(
            role=role,
            up=up,
            others_bytes=self.mean_bytes(values),
            carries=self.block.carried in values,
            after_sent=after_sent,
            ways=np.array([segment.index in way for way in self.shape.ways]),
        )
        mean, var, square = _transfer_columns(self.tables, role, up=up)
        features[:, mean] += transfer.others_bytes
        features[:, var] += self._var_bytes2(values)
        if not transfer.carries and not after_sent:
            features[:, square] += transfer.others_bytes**2
        return transfer


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
    sent = addition.sent_bytes[other]
    if addition.same_segment:
        sent = sent + labels.sent_bytes[one]
    if addition.carried_sent:
        sent = sent + labels.out_mean_bytes[one]
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
        sent_bytes=sent,
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
    carried = labels.out_mean_bytes[one] if transfer.carries else np.zeros(len(one))
    added = transfer.others_bytes[other] + carried
    before = labels.sent_bytes[one] if transfer.after_sent else np.zeros(len(one))
    lies_on = np.flatnonzero(np.tile(transfer.ways, len(labels.paths)))[:, np.newaxis]
    rows = np.arange(len(one))
    paths[lies_on, rows, square] += added * (added + 2 * before)
    if transfer.carries:
        paths[lies_on, rows, mean] += carried
        paths[lies_on, rows, var] += labels.out_var_bytes2[one]
        totals[:, tables.total_of.index(mean)] += carried
