"""Building templates: labels grown block by block, with dominance after each.

The proposition that this rests on, and its proof, are in docs/planner.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.dominance import Also, Mask, undominated
from compass_coordinator.planner.templates.blocks import Block, blocks
from compass_coordinator.planner.templates.expand import grown, used_after
from compass_coordinator.planner.templates.kinds import Kind
from compass_coordinator.planner.templates.labels import Labels, joined, start
from compass_coordinator.planner.templates.tables import Tables, tables
from compass_coordinator.planner.templates.templates import Templates
from compass_shared.errors import PlanningError
from compass_shared.pipeline import Pipeline
from compass_shared.profile import AccuracyTable

LIMIT = 1_000_000
"""Labels of one stage that are built at most; some 500 bytes each for three roles and one path."""
_BATCH = 200_000
_COMPARED_CONFIGS = 2048
"""Beginnings of configs among which every pair is compared; of more, only equal ones are."""


def build_templates(
    pipeline: Pipeline,
    accuracy: AccuracyTable,
    kinds: Sequence[Kind],
    *,
    max_remote: int | None = None,
    limit: int = LIMIT,
) -> Templates:
    """All plans of a pipeline but those that another plan equals or beats for every query at once.

    For every query over these kinds, every SLO, and any non-negative slowdowns, overheads, links, waits,
    prices and resource prices, the best template is as good as the best plan.

    Args:
        pipeline: Any DAG.
        accuracy: Configs that it does not list cannot be chosen.
        kinds: Of the origin first, then of each remote role; roles of equal kinds are interchangeable.
        max_remote: Remote roles that one plan may use; None: all of them.
        limit: Labels to keep at any stage, and configs, at most.

    Returns:
        The templates, in the order of placement and config in which they were built.

    Raises:
        PlanningError: If there is no kind, or more labels than ``limit``.
    """
    figures = tables(pipeline, accuracy, kinds, limit)
    max_remote = len(kinds) - 1 if max_remote is None else max_remote
    first = start(
        len(figures.totals), len(figures.columns), kinds[0].request_mean_bytes, kinds[0].request_var_bytes2
    )
    counts = [("combinations", _combinations(figures, max_remote))]
    labels = {0: first}
    for block in blocks(pipeline):
        labels, made = _stage(figures, block, labels, max_remote, limit)
        counts.append((f"labels after {block.operators[-1].name}", made))
        counts.append((f"undominated after {block.operators[-1].name}", sum(map(len, labels.values()))))
    return _templates(figures, labels, tuple(counts))


def _stage(
    figures: Tables, block: Block, labels: dict[int, Labels], max_remote: int, limit: int
) -> tuple[dict[int, Labels], int]:
    """Labels after a block by the role of its last operator, and how many were made.

    At the end of the pipeline no role is needed any more, and all are in one.
    """
    known = _suffix_accuracy(figures, block)
    last = block.operators[-1] is figures.pipeline.operators[-1]
    choosable = np.asarray((known > -np.inf).any(axis=1))
    waiting: dict[int, list[Labels]] = {}
    done: dict[int, Labels] = {}
    made = 0
    for before in labels.values():
        for part in grown(figures, block, before, max_remote, choosable):
            role = 0 if last else int(part.placement[0, -1])
            waiting.setdefault(role, []).append(part)
            made += len(part)
            if sum(map(len, waiting[role])) > _BATCH:
                waiting[role] = [_pruned(figures, joined(waiting[role]), known)]
            if sum(len(other) for parts in waiting.values() for other in parts) > limit:
                raise PlanningError(
                    f"pipeline {figures.pipeline.name!r} has more than {limit} labels after "
                    f"{block.operators[-1].name!r}, too many to enumerate: search it instead"
                )
    for role, parts in waiting.items():
        done[role] = _pruned(figures, joined(parts), known)
    return done, made


def _suffix_accuracy(figures: Tables, block: Block) -> Floats:
    """(configs up to the block's end, ways to go on) accuracy, -inf where it was not measured."""
    operators = figures.pipeline.operators
    end = operators.index(block.operators[-1]) + 1
    begun = int(np.prod([len(list(op.variants())) for op in operators[:end]]))
    return figures.accuracy.reshape(begun, -1)


def _pruned(figures: Tables, labels: Labels, known: Floats) -> Labels:
    """Only labels that no other one replaces whatever comes after.

    Args:
        figures: Names the columns.
        labels: With one role for the waist, or complete plans.
        known: (configs so far, ways to go on) accuracy.
    """
    begun, config = np.unique(labels.config, return_inverse=True)
    accuracy = np.unique(known[begun], axis=1)
    columns = [labels.totals, labels.paths.max(axis=0)]
    groups = _calls(figures, labels)
    conditions: list[Also] = []
    if accuracy.shape[1] == 1 or len(begun) <= _COMPARED_CONFIGS:
        columns.append(-_scores(accuracy)[config, np.newaxis])
        if accuracy.shape[1] > 1:
            conditions.append(_no_less_accurate(accuracy, config))
    else:
        groups = groups * len(begun) + config
    if labels.placement.shape[1] < len(figures.pipeline.operators):
        columns += [each[:, np.newaxis] for each in (labels.out_mean_bytes, labels.out_var_bytes2)]
    if len(labels.paths) > 1:
        conditions.append(_no_worse_paths(labels.paths))
    return labels.take(undominated(np.hstack(columns), groups=groups, also=_both(conditions)))


def _calls(figures: Tables, labels: Labels) -> Indices:
    """Number of the combination of calls per role.

    Every operator is one call somewhere, so calls add up to the same for all labels: none has fewer at one
    role without having more at another, and only labels with the same calls at every role can be compared.
    """
    operators = labels.placement.shape[1]
    at_role = [(labels.placement == role).sum(axis=1) for role in range(len(figures.kinds))]
    return np.asarray(np.ravel_multi_index(tuple(at_role), (operators + 1,) * len(at_role)))


def _scores(accuracy: Floats) -> Floats:
    """(configs,) sum of ranks over the columns: more for whatever is nowhere less accurate, and not equal."""
    ranks = [np.unique(column, return_inverse=True)[1] for column in accuracy.T]
    return np.asarray(np.sum(ranks, axis=0, dtype=np.float64))


def _no_less_accurate(accuracy: Floats, config: Indices) -> Also:
    """Whether one label's config leads to no less accuracy than another's, whatever follows."""
    table = np.array([(own >= accuracy).all(axis=1) for own in accuracy])

    def holds(better: Indices, worse: Indices) -> Mask:
        return table[config[better], config[worse]]

    return holds


def _no_worse_paths(paths: Floats) -> Also:
    """Whether every path of one label is no worse in every feature than some path of another."""

    def holds(better: Indices, worse: Indices) -> Mask:
        every = np.ones(len(better), dtype=np.bool_)
        for path in paths:
            left = np.flatnonzero(every)
            own, others = path[better[left]], worse[left]
            every[left] = np.any([(own <= other[others]).all(axis=1) for other in paths], axis=0)
        return every

    return holds


def _both(conditions: Sequence[Also]) -> Also | None:
    if not conditions:
        return None

    def holds(better: Indices, worse: Indices) -> Mask:
        every = np.ones(len(better), dtype=np.bool_)
        for condition in conditions:
            left = np.flatnonzero(every)
            every[left] = condition(better[left], worse[left])
        return every

    return holds


def _combinations(figures: Tables, max_remote: int) -> int:
    """Configs in the accuracy table x placements, of which interchangeable ones count once."""
    ways = {0: 1}
    for _ in figures.pipeline.operators:
        after: dict[int, int] = {}
        for used, count in ways.items():
            for role in range(len(figures.kinds)):
                now = used_after(figures, used, (role,), max_remote)
                if now is not None:
                    after[now] = after.get(now, 0) + count
        ways = after
    return int(np.isfinite(figures.accuracy).sum()) * sum(ways.values())


def _templates(figures: Tables, labels: dict[int, Labels], counts: tuple[tuple[str, int], ...]) -> Templates:
    operators = len(figures.pipeline.operators)
    found = next(iter(labels.values())) if labels else None
    if found is None:
        empty = np.zeros((0, operators))
        nothing = np.zeros((1, 0, 0))
        return Templates(
            pipeline=figures.pipeline,
            kinds=figures.kinds,
            variants=empty.astype(np.int16),
            placement=empty.astype(np.int8),
            accuracy=np.zeros(0),
            total_columns=(),
            totals=nothing[0],
            path_columns=(),
            paths=nothing,
            counts=counts,
        )
    totals = np.flatnonzero(found.totals.any(axis=0))
    features = np.flatnonzero(found.paths.any(axis=(0, 1)))
    return Templates(
        pipeline=figures.pipeline,
        kinds=figures.kinds,
        variants=found.variants,
        placement=found.placement,
        accuracy=figures.accuracy[found.config],
        total_columns=tuple(figures.totals[at] for at in totals),
        totals=np.ascontiguousarray(found.totals[:, totals]),
        path_columns=tuple(figures.columns[at] for at in features),
        paths=np.ascontiguousarray(found.paths[:, :, features]),
        counts=counts,
    )
