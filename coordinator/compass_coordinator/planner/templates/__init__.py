"""Plan templates: what is left of a pipeline's plans once those that can be no query's best are dropped."""

from compass_coordinator.planner.templates.box import Box, Range, prune_for_box
from compass_coordinator.planner.templates.build import build_templates
from compass_coordinator.planner.templates.columns import Column, Quantity
from compass_coordinator.planner.templates.keys import templates_key
from compass_coordinator.planner.templates.kinds import Kind
from compass_coordinator.planner.templates.templates import Templates

__all__ = [
    "Box",
    "Column",
    "Kind",
    "Quantity",
    "Range",
    "Templates",
    "build_templates",
    "prune_for_box",
    "templates_key",
]
