"""Plans: config + placement + allocation, with the estimate they were chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from compass_shared.values import KnobValue

Placement: TypeAlias = Mapping[str, str]
"""Operator name -> site name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """What one operator gets at its site."""

    cores: int = 1
    batch: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a plan is predicted to do."""

    latency_mean_s: float
    latency_var_s2: float
    latency_p95_s: float
    accuracy: float
    cost_usd_per_1000: float
    demand: Mapping[str, float]
    """Resource name -> demand at the query's rate, in the resource's unit."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Extra metric of the pipeline -> its mean under the plan's config, where it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one query's requests are to be run."""

    config: Mapping[str, Mapping[str, KnobValue]]
    placement: Placement
    allocation: Mapping[str, Allocation] = field(default_factory=dict)
    """Operators that are not listed get one core and batch 1."""
    estimate: Estimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanShare:
    """One of several plans of a divisible query."""

    plan: Plan
    fraction: float
    """Of the query's requests, in (0, 1]; what a query's fractions leave of 1 is not served."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Epoch:
    """Order of decisions: first the coordinator's own epoch, then its sequence number."""

    coordinator: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAccess:
    """How an agent reaches a worker for one query."""

    address: str
    """Base URL of its data plane."""
    token: str
    """Shown with every call; the worker got the same one with its share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The plan chosen for one query, as published to its agent."""

    query: str
    pipeline: str
    digest: str
    """Digest of the pipeline that was planned for; an agent with another one refuses."""
    epoch: Epoch
    plan: Plan | None
    """None: the query was refused; requests run on the fallback, as best effort."""
    fallback: Plan | None
    """A plan that needs nothing but the origin itself."""
    workers: Mapping[str, WorkerAccess] = field(default_factory=dict)
    """Site name -> access, for every remote site the plan uses."""
    deadline_s: float = 10.0
    """Time after which a request without an answer ends with a DeadlineError."""
    refusal: str | None = None
    """Why there is no plan, in words."""
    split: tuple[PlanShare, ...] = ()
    """Plans to draw from by fraction, request by request; then ``plan`` is the one with the largest."""
