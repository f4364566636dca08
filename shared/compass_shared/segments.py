"""Cutting a placed pipeline into segments: what runs where, in which order, and what crosses links.

A segment is a set of operators at one site that run back to back without leaving it. The executor
runs segments, the estimator prices them and ``check_plan`` recounts them, all from this one cut.

Operators are grouped by (site, depth), where depth counts the site changes on the worst path to the
operator. An edge inside a group keeps site and depth; every other edge raises the depth, so the graph
of segments has no cycle even when the placement goes back and forth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compass_shared.errors import PlanningError
from compass_shared.pipeline import REQUEST, Pipeline
from compass_shared.plan import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Operators that run back to back at one site."""

    index: int
    site: str
    operators: tuple[str, ...]
    """In topological order; one core runs them one after the other."""
    needs: tuple[str, ...]
    """Values made elsewhere (operator names or ``request``), each sent once."""
    exports: tuple[str, ...]
    """Values that other segments need, or that are the pipeline's output."""
    after: tuple[int, ...]
    """Indices of the segments whose values it needs."""


def cut(pipeline: Pipeline, placement: Placement, origin: str) -> tuple[Segment, ...]:
    """Cut a placed pipeline into segments, in an order in which they can run.

    Args:
        pipeline: The DAG; its operators are in topological order.
        placement: A site for every operator.
        origin: Site where requests arise.

    Returns:
        Segments; ``after`` of each refers to earlier ones only.

    Raises:
        PlanningError: If an operator has no site.
    """
    groups = _groups(pipeline, placement, origin)
    home = {name: index for index, (_, names) in enumerate(groups) for name in names}
    segments = []
    for index, (site, names) in enumerate(groups):
        inside = set(names)
        needs = _unique(
            need for name in names for need in pipeline.operator(name).inputs if need not in inside
        )
        exports = tuple(
            name
            for name in names
            if name == pipeline.output
            or any(name in op.inputs and op.name not in inside for op in pipeline.operators)
        )
        after = tuple(sorted({home[need] for need in needs if need != REQUEST}))
        segments.append(
            Segment(index=index, site=site, operators=names, needs=needs, exports=exports, after=after)
        )
    return tuple(segments)


def _groups(pipeline: Pipeline, placement: Placement, origin: str) -> list[tuple[str, tuple[str, ...]]]:
    depth = {REQUEST: 0}
    site_of = {REQUEST: origin}
    members: dict[tuple[int, str], list[str]] = {}
    for operator in pipeline.operators:
        if operator.name not in placement:
            raise PlanningError(f"the placement names no site for operator {operator.name!r}")
        site = placement[operator.name]
        site_of[operator.name] = site
        depth[operator.name] = max(depth[up] + (site_of[up] != site) for up in operator.inputs)
        members.setdefault((depth[operator.name], site), []).append(operator.name)
    return [(site, tuple(names)) for (_, site), names in sorted(members.items(), key=lambda item: item[0][0])]


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
