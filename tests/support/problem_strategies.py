"""Hypothesis strategies over ``support.problems``: shapes are drawn, and so shrink; figures follow a seed."""

from __future__ import annotations

from hypothesis import strategies as st

from compass_shared.problem import Problem
from support.problems import FleetShape, random_problem

seeds = st.integers(min_value=0, max_value=2**32 - 1)


@st.composite
def shapes(
    draw: st.DrawFn,
    *,
    max_operators: int = 4,
    max_variants: int = 3,
    max_queries: int = 3,
    loaded: bool = False,
) -> FleetShape:
    """Shapes of problems with a device, an edge server and a cloud pool; chains and other DAGs."""
    variants = st.lists(st.integers(1, max_variants), min_size=1, max_size=max_operators)
    return FleetShape(
        variants=tuple(draw(variants)),
        chain=draw(st.booleans()),
        devices=draw(st.integers(1, 2)),
        queries=draw(st.integers(1, max_queries)),
        measured_share=draw(st.sampled_from([1.0, 0.6])),
        loaded=loaded,
        tightness=draw(st.sampled_from([0.3, 1.0, 2.0])),
    )


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    max_operators: int = 4,
    max_variants: int = 3,
    max_queries: int = 3,
    loaded: bool = False,
) -> Problem:
    """Small random problems."""
    shape = shapes(
        max_operators=max_operators, max_variants=max_variants, max_queries=max_queries, loaded=loaded
    )
    return random_problem(draw(seeds), draw(shape))
