"""Blocks: a pipeline in pieces, each of which the rest sees through a single operator.

An operator is a *waist* if all operators before it lead to it and later ones read nothing earlier, not even
the request. What comes after a waist depends on what came before through three things only: the waist's
role, the bytes of its output and the segment that it is in. So plans of a chain are built operator by
operator, and a fork-join is one block: everything after its fork up to and including its join.
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
    last: bool
    output: str
    """The pipeline's output if its bytes are known to be exported in this block, else empty."""

    @property
    def carried(self) -> str:
        """The value that comes from before the block."""
        return REQUEST if self.base is None else self.base.name


def blocks(pipeline: Pipeline) -> tuple[Block, ...]:
    """Cut a pipeline at its waists; the last block ends with the last operator."""
    operators = pipeline.operators
    ends = [at for at in range(len(operators) - 1) if _is_waist(operators, at)] + [len(operators) - 1]
    found = []
    base = None
    start = 0
    for end in ends:
        inside = operators[start : end + 1]
        last = end == len(operators) - 1
        settled = {op.name for op in (inside if last else inside[:-1])} | ({base.name} if base else set())
        output = pipeline.output if pipeline.output in settled else ""
        found.append(Block(base=base, operators=inside, last=last, output=output))
        base, start = operators[end], end + 1
    return tuple(found)


def _is_waist(operators: Sequence[Operator], at: int) -> bool:
    leads = {operators[at].name}
    for operator in reversed(operators[:at]):
        if any(operator.name in later.inputs for later in operators[: at + 1] if later.name in leads):
            leads.add(operator.name)
    earlier = {REQUEST, *(op.name for op in operators[:at])}
    return len(leads) == at + 1 and not any(earlier & set(later.inputs) for later in operators[at + 1 :])


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
