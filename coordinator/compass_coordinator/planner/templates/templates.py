"""Templates: the plans of a pipeline that can be some query's best, with what no query changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats
from compass_coordinator.planner.dominance import Mask
from compass_coordinator.planner.templates.columns import Column
from compass_coordinator.planner.templates.kinds import Kind
from compass_shared.errors import PlanningError
from compass_shared.pipeline import Pipeline
from compass_shared.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Templates:
    """n plans over roles: role 0 is the origin, the others are remote sites that a query fills in.

    A query with several sites of one kind tries the roles of that kind on them in every way.
    """

    pipeline: Pipeline
    kinds: tuple[Kind, ...]
    """Of each role."""
    variants: NDArray[np.int16]
    """(n, operators) index into ``list(operator.variants())``."""
    placement: NDArray[np.int8]
    """(n, operators) role."""
    accuracy: Floats
    """(n,)."""
    total_columns: tuple[Column, ...]
    totals: Floats
    """(n, T) of one request, seconds and bytes; columns that are zero everywhere are left out."""
    path_columns: tuple[Column, ...]
    paths: Floats
    """(k, n, F); a plan with fewer paths repeats one, so a maximum over k needs no mask."""
    counts: tuple[tuple[str, int], ...]
    """How many plans or labels there were at each stage of building."""

    def __len__(self) -> int:
        return len(self.accuracy)

    @property
    def used(self) -> Mask:
        """(n, roles) whether any operator is at the role."""
        return np.stack([(self.placement == role).any(axis=1) for role in range(len(self.kinds))], axis=1)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        arrays = (self.variants, self.placement, self.accuracy, self.totals, self.paths)
        return sum(array.nbytes for array in arrays)

    def plan(self, row: int, sites: Sequence[str]) -> Plan:
        """One template as a plan, with a site for every role that it uses.

        Raises:
            PlanningError: If there are fewer sites than roles.
        """
        if len(sites) < len(self.kinds):
            raise PlanningError(f"{len(self.kinds)} roles need as many sites, got {len(sites)}")
        operators = self.pipeline.operators
        chosen = zip(operators, self.variants[row], strict=True)
        placed = zip(operators, self.placement[row], strict=True)
        return Plan(
            config={op.name: list(op.variants())[variant] for op, variant in chosen},
            placement={op.name: sites[role] for op, role in placed},
        )
