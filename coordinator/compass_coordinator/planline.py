"""A plan in one line, for tables: what runs where, with which knobs."""

from __future__ import annotations

from itertools import groupby

from compass_shared.pipeline import Pipeline
from compass_shared.plan import Plan


def plan_line(pipeline: Pipeline, plan: Plan) -> str:
    """``phone: prepare(90, 0.7) | cloud: detect(det-tiny, 640) crop recognise(rec-tiny)``.

    Args:
        pipeline: Gives the order of operators.
        plan: Its knob values stand in the order of their knobs' names.
    """
    parts = []
    for site, operators in groupby(pipeline.operators, key=lambda op: plan.placement[op.name]):
        steps = " ".join(_step(op.name, plan) for op in operators)
        parts.append(f"{site}: {steps}")
    return " | ".join(parts)


def _step(operator: str, plan: Plan) -> str:
    knobs = plan.config.get(operator, {})
    values = ", ".join(_short(name, knobs[name]) for name in sorted(knobs))
    return f"{operator}({values})" if values else operator


def _short(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name if value else f"not {name}"
    return str(value)
