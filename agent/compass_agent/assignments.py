"""Assignments in force at one agent: which are taken, which are refused and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from compass_agent.events import RequestSubmitted, Source
from compass_agent.places import Places
from compass_agent.requests import Route
from compass_shared.errors import ConfigError, RefusedError
from compass_shared.pipeline import Pipeline, variant_key
from compass_shared.plan import Assignment, Epoch, Plan, PlanShare
from compass_shared.site import Tier

DEFAULT_DEADLINE_S = 30.0
"""Deadline of requests that no assignment and no caller gave one."""

_WHOLE = 1e-9
"""How far fractions may miss a sum of 1 by rounding."""

NO_EPOCH = Epoch(coordinator=0, sequence=0)


class AssignmentBook:
    """The assignments in force, ordered by epoch.

    Args:
        site: The agent's own site.
        pipelines: Installed pipelines by name.
        assignments: What was in force before; entries that no longer fit are left out.
        tier: Tier of the agent's site.
    """

    def __init__(
        self,
        site: str,
        pipelines: Mapping[str, Pipeline],
        assignments: Mapping[str, Assignment],
        *,
        tier: Tier = Tier.DEVICE,
    ) -> None:
        self._site = site
        self.places = Places(site, tier)
        """Where operators may run."""
        self._pipelines = dict(pipelines)
        self._in_force: dict[str, Assignment] = {}
        """Query -> assignment."""
        self._drawn: dict[str, Counter[int]] = {}
        """Split query -> how many of its requests each of its plans was given."""
        self.coordinator_epoch = 0
        """Highest coordinator epoch seen; lower ones are refused."""
        for query, assignment in assignments.items():
            # Not ordered among each other: a newer coordinator need not have decided on all of them yet.
            if self._fit_problem(query, assignment) is None:
                self._put(query, assignment)

    @property
    def in_force(self) -> Mapping[str, Assignment]:
        """Query -> assignment."""
        return self._in_force

    def take(self, query: str, assignment: Assignment) -> str | None:
        """Put an assignment in force.

        Returns:
            None, or why it was refused.
        """
        problem = self._order_problem(query, assignment.epoch) or self._fit_problem(query, assignment)
        if problem is None:
            self._put(query, assignment)
        return problem

    def _put(self, query: str, assignment: Assignment) -> None:
        self.coordinator_epoch = max(self.coordinator_epoch, assignment.epoch.coordinator)
        self._in_force[query] = assignment
        self._drawn.pop(query, None)

    def local_variants(self, query: str) -> tuple[str, ...]:
        """What a query's plan and fallback run here, as keys from ``variant_key``."""
        assignment = self._in_force[query]
        pipeline = self._pipelines[assignment.pipeline]
        found = {
            variant_key(operator.name, plan.config.get(operator.name, {})): None
            for plan in (*_plans(assignment), assignment.fallback)
            if plan is not None
            for operator in pipeline.operators
            if plan.placement[operator.name] == self._site
        }
        return tuple(found)

    def withdraw(self, query: str) -> None:
        """Forget a query's assignment."""
        self._in_force.pop(query, None)
        self._drawn.pop(query, None)

    def share_problem(
        self, epoch: Epoch, pipeline: str, digest: str, variants: tuple[str, ...] = ()
    ) -> str | None:
        """Why a worker's share cannot be held, or None."""
        if epoch.coordinator < self.coordinator_epoch:
            return f"coordinator epoch {epoch.coordinator} is older than {self.coordinator_epoch}"
        if problem := self._pipeline_problem(pipeline, digest):
            return problem
        operators = {variant.partition("[")[0] for variant in variants}
        return self.places.serving_problem(self._pipelines[pipeline], operators)

    def stateful_layout(self, query: str, pipeline: str) -> Mapping[str, tuple[str, str]]:
        """Where and how a query's stateful operators run: when that changes, what they kept is of no use.

        Args:
            query: Its name.
            pipeline: What it runs if nothing is assigned to it.

        Returns:
            Operator -> site and variant.
        """
        assignment = self._in_force.get(query)
        installed = self._pipelines.get(pipeline if assignment is None else assignment.pipeline)
        if installed is None:
            return {}
        if assignment is None:
            return _stateful_parts(installed, default_plan(installed, self._site))
        plan = next(iter(_plans(assignment)), assignment.fallback)
        return {} if plan is None else _stateful_parts(installed, plan)

    def query_of(self, event: RequestSubmitted) -> str:
        """Name of the query that a request belongs to.

        Raises:
            ConfigError: As ``routes``.
        """
        self._installed(event.pipeline)
        assignment = self._meant(event)
        return (event.query or event.pipeline) if assignment is None else assignment.query

    def routes(self, event: RequestSubmitted) -> tuple[list[Route], float]:
        """What a request may follow, in order, and the time it is allowed.

        Raises:
            ConfigError: The pipeline is not installed, is not the query's, or several queries could be meant.
            RefusedError: The query has neither a plan nor a fallback.
        """
        pipeline = self._installed(event.pipeline)
        assignment = self._meant(event)
        if assignment is None:
            plan = default_plan(pipeline, self._site)
            if problem := self.places.problem(pipeline, plan):
                raise RefusedError(f"{problem}; nothing was assigned yet")
            query = event.query or event.pipeline
            route = Route(source=Source.DEFAULT, query=query, pipeline=pipeline, plan=plan, epoch=NO_EPOCH)
            return [route], DEFAULT_DEADLINE_S
        assigned = self._draw(assignment)
        choices = [(Source.ASSIGNED, assigned)]
        if not _runs_alike(assigned, assignment.fallback):
            choices.append((Source.FALLBACK, assignment.fallback))
        routes = [
            Route(
                source=source,
                query=assignment.query,
                pipeline=pipeline,
                plan=plan,
                epoch=assignment.epoch,
                workers=dict(assignment.workers),
            )
            for source, plan in choices
            if plan is not None
        ]
        if not routes:
            raise RefusedError(assignment.refusal or f"query {assignment.query!r} has no plan")
        return routes, assignment.deadline_s

    def _draw(self, assignment: Assignment) -> Plan | None:
        """The plan of the next request: of a split query the one that is furthest behind its fraction.

        Raises:
            RefusedError: The query is served in part, and this request belongs to the rest.
        """
        if not assignment.split:
            return assignment.plan
        drawn = self._drawn.setdefault(assignment.query, Counter())
        fractions = [share.fraction for share in assignment.split]
        unserved = 1.0 - math.fsum(fractions)
        if unserved > _WHOLE:
            fractions.append(unserved)
        number = drawn.total() + 1
        index = max(range(len(fractions)), key=lambda at: fractions[at] * number - drawn[at])
        drawn[index] += 1
        if index == len(assignment.split):
            raise RefusedError(
                f"query {assignment.query!r} is served in part: {unserved:.0%} of its requests find no room"
            )
        return assignment.split[index].plan

    def _installed(self, name: str) -> Pipeline:
        pipeline = self._pipelines.get(name)
        if pipeline is None:
            known = ", ".join(sorted(self._pipelines)) or "none"
            raise ConfigError(f"pipeline {name!r} is not installed here; installed: {known}")
        return pipeline

    def _meant(self, event: RequestSubmitted) -> Assignment | None:
        if event.query is not None:
            named = self._in_force.get(event.query)
            if named is not None and named.pipeline != event.pipeline:
                raise ConfigError(
                    f"query {event.query!r} runs pipeline {named.pipeline!r}, not {event.pipeline!r}"
                )
            return named
        ours = [a for a in self._in_force.values() if a.pipeline == event.pipeline]
        if len(ours) > 1:
            names = ", ".join(sorted(a.query for a in ours))
            raise ConfigError(f"pipeline {event.pipeline!r} serves several queries here, name one: {names}")
        return ours[0] if ours else None

    def _order_problem(self, query: str, epoch: Epoch) -> str | None:
        if epoch.coordinator < self.coordinator_epoch:
            return f"coordinator epoch {epoch.coordinator} is older than {self.coordinator_epoch}"
        current = self._in_force.get(query)
        if current is not None and epoch < current.epoch:
            return f"superseded by {current.epoch.coordinator}.{current.epoch.sequence}"
        return None

    def _fit_problem(self, query: str, assignment: Assignment) -> str | None:
        if assignment.query != query:
            return f"it is for query {assignment.query!r}, not {query!r}"
        if problem := self._pipeline_problem(assignment.pipeline, assignment.digest):
            return problem
        if not 0 < assignment.deadline_s < math.inf:  # also refuses NaN: every request has to end
            return f"a deadline of {assignment.deadline_s} s is none"
        pipeline = self._pipelines[assignment.pipeline]
        reached = {self._site, *assignment.workers}
        plans: list[tuple[Plan | None, set[str]]] = [(plan, reached) for plan in _plans(assignment)]
        for plan, sites in (*plans, (assignment.fallback, {self._site})):
            if plan is None:
                continue
            if problem := _plan_problem(pipeline, plan, sites) or self.places.problem(pipeline, plan):
                return problem
        return _split_problem(pipeline, assignment.split)

    def _pipeline_problem(self, name: str, digest: str) -> str | None:
        pipeline = self._pipelines.get(name)
        if pipeline is None:
            return f"pipeline {name!r} is not installed here"
        if pipeline.digest != digest:
            return f"pipeline {name!r} is {pipeline.digest[:12]} here, not {digest[:12]}: update the bundle"
        return None


def default_plan(pipeline: Pipeline, site: str) -> Plan:
    """Every operator at ``site``, every knob at its first value: what runs before any assignment."""
    return Plan(
        config={op.name: {knob: values[0] for knob, values in op.knobs.items()} for op in pipeline.operators},
        placement={op.name: site for op in pipeline.operators},
    )


def _stateful_parts(pipeline: Pipeline, plan: Plan) -> dict[str, tuple[str, str]]:
    """Stateful operator -> where it runs, and its variant."""
    return {
        operator.name: (
            plan.placement[operator.name],
            variant_key(operator.name, plan.config.get(operator.name, {})),
        )
        for operator in pipeline.operators
        if operator.stateful
    }


def _split_problem(pipeline: Pipeline, split: Sequence[PlanShare]) -> str | None:
    fractions = [share.fraction for share in split]
    if not all(0 < fraction <= 1 for fraction in fractions) or not math.fsum(fractions) <= 1 + _WHOLE:
        return f"fractions {fractions} are not shares of its requests"
    layouts = [_stateful_parts(pipeline, share.plan) for share in split]
    if any(layout != layouts[0] for layout in layouts):
        return "its requests are split over plans that run the operators with state differently"
    return None


def _plans(assignment: Assignment) -> tuple[Plan, ...]:
    """Every plan that requests may be given first."""
    if assignment.split:
        return tuple(share.plan for share in assignment.split)
    return () if assignment.plan is None else (assignment.plan,)


def _runs_alike(plan: Plan | None, fallback: Plan | None) -> bool:
    """Whether the fallback would only do the same work at the same place again."""
    if plan is None or fallback is None:
        return False
    return (plan.config, plan.placement) == (fallback.config, fallback.placement)


def _plan_problem(pipeline: Pipeline, plan: Plan, sites: set[str]) -> str | None:
    try:
        pipeline.check_config(plan.config)
    except ConfigError as error:
        return str(error)
    for operator in pipeline.operators:
        site = plan.placement.get(operator.name)
        if site not in sites:
            return f"operator {operator.name!r} is placed at {site!r}, which cannot be reached"
    return None
