"""Blocks: a pipeline in pieces, each of which the rest sees through a single operator.

An operator is a *waist* if all operators before it lead to it and later ones read nothing earlier, not even
the request. What comes after a waist depends on what came before through two things only: the waist's
role and the bytes of its output. So plans of a chain are built operator by operator, and a fork-join is one
block: everything after its fork up to and including its join.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from compass_shared.evaluate import paths
from compass_shared.pipeline import REQUEST, Operator, Pipeline
from compass_shared.segments import Segment, cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Operators after one waist up to and including the next, or to the pipeline's end."""

    base: Operator | None
    """The waist before it; None for the first block, which reads the request."""
    operators: tuple[Operator, ...]
    output: str
    """The pipeline's output in the last block, empty in others."""

    @property
    def carried(self) -> str:
        """The value that comes from before the block."""
        return REQUEST if self.base is None else self.base.name


def blocks(pipeline: Pipeline) -> tuple[Block, ...]:
    """Cut a pipeline at its waists; the last block ends with the last operator."""
    operators = pipeline.operators
    waists = [at for at in range(len(operators) - 1) if _is_waist(pipeline, at)]
    found = []
    for before, end in zip([-1, *waists], [*waists, len(operators) - 1], strict=True):
        last = end == len(operators) - 1
        found.append(
            Block(
                base=operators[before] if before >= 0 else None,
                operators=operators[before + 1 : end + 1],
                output=pipeline.output if last else "",
            )
        )
    return tuple(found)


def _is_waist(pipeline: Pipeline, at: int) -> bool:
    operators = pipeline.operators
    leads = {operators[at].name}
    for operator in reversed(operators[:at]):
        if any(operator.name in later.inputs for later in operators[: at + 1] if later.name in leads):
            leads.add(operator.name)
    earlier = {REQUEST, *(op.name for op in operators[:at])}
    read_later = {name for later in operators[at + 1 :] for name in later.inputs}
    # A result that is there before the end would leave its segment together with what others need of it.
    done = pipeline.output in {op.name for op in operators[: at + 1]}
    return len(leads) == at + 1 and not earlier & read_later and not done


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A block with a role for each of its operators: its segments and the ways through them."""

    base_role: int
    roles: tuple[int, ...]
    segments: tuple[Segment, ...]
    """Their sites are roles as text."""
    ways: tuple[tuple[int, ...], ...]
    """Source-to-sink paths, indices of segments; none goes through a subset of another's segments."""


def shape(block: Block, base_role: int, roles: Sequence[int]) -> Shape:
    """Cut a placed block into segments, by the one definition in ``compass_shared.segments``."""
    operators = block.operators
    placement = {op.name: str(role) for op, role in zip(operators, roles, strict=True)}
    if block.base is not None:
        operators = (replace(block.base, inputs=(REQUEST,)), *operators)
        placement[block.base.name] = str(base_role)
    piece = Pipeline(name="", version="", description="", operators=operators, output=block.output)
    segments = cut(piece, placement, "0")
    return Shape(base_role=base_role, roles=tuple(roles), segments=segments, ways=tuple(_longest(segments)))


def _longest(segments: Sequence[Segment]) -> Iterator[tuple[int, ...]]:
    """Paths that are not part of another one: a part is never slower."""
    found = list(dict.fromkeys(paths(segments)))
    sets = [set(path) for path in found]
    for path, own in zip(found, sets, strict=True):
        if not any(own < other for other in sets):
            yield path
