"""The control messages, as frozen dataclasses: what each topic of ``compass_shared.topics`` carries.

Every message travels as a MessagePack map with a ``schema`` number. Fields may be added with a default
within one schema; receivers ignore what they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from compass_shared.plan import Assignment, Epoch
from compass_shared.profile import OperatorProfile, SiteProfile
from compass_shared.query import Query
from compass_shared.site import Prices, Tier

SCHEMA = 1
"""Version of the message schemas below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusMessage:
    """An agent came online or went offline; the last will is the offline one."""

    online: bool
    session: int
    """Session epoch: wills can arrive after the next session's online status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleInfo:
    """A pipeline bundle installed on an agent."""

    version: str
    digest: str
    """Digest of the declarative part."""
    code_sha256: str
    """Digest of the Python of its own operators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareInfo:
    """What an agent runs on."""

    machine: str
    cores: int
    memory_bytes: int
    system: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloMessage:
    """Who an agent is and what it can run."""

    session: int
    tier: Tier
    agent_version: str
    runtimes: Mapping[str, str]
    """Runtime -> version of the library behind it."""
    bundles: Mapping[str, BundleInfo]
    """Pipeline -> installed bundle."""
    hardware: HardwareInfo
    cores: float
    """Operators it will run at once for Compass."""
    utilisation_cap: float
    prices: Prices
    power_w: float = 0.0
    device_profile: str | None = None
    emulated: bool = False
    data_address: str | None = None
    """Base URL of a worker's data plane, as others reach it."""
    models: tuple[str, ...] = ()
    """SHA-256 of models in its cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport:
    """A measured way from this agent to a worker and back."""

    target: str
    rtt_s: float
    rtt_var_s2: float
    up_bps: float
    """Bytes per second towards the target."""
    down_bps: float
    rel_sd: float = 0.0
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryCounters:
    """How one query's requests ended since the agent started; nothing of their content."""

    answered: int = 0
    failed: int = 0
    expired: int = 0
    on_fallback: int = 0
    latency_p95_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryMessage:
    """How an agent is doing."""

    session: int
    cpu_share: float
    """Busy share of the whole machine, in [0, 1]."""
    memory_used_bytes: int
    memory_total_bytes: int
    battery: float | None = None
    temperature_c: float | None = None
    links: tuple[LinkReport, ...] = ()
    queries: Mapping[str, QueryCounters] = field(default_factory=dict)
    epochs: Mapping[str, Epoch] = field(default_factory=dict)
    """Query -> epoch of the assignment in force."""
    overruns: int = 0
    """Emulated calls that took longer than they should have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileMessage:
    """Measured operators and links of one site."""

    session: int
    profile: SiteProfile
    links: tuple[LinkReport, ...] = ()


MAX_PROBES = 256
"""Most variants that one probe message may name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeMessage:
    """Variants that the coordinator wants measured; the answer is the whole profile, these included."""

    pipeline: str
    digest: str
    """Digest of the pipeline that is meant; another one's variants are not measured."""
    variants: tuple[str, ...]
    """Keys from ``pipeline.variant_key``, the most wanted first; at most ``MAX_PROBES``."""
    epoch: int
    """Coordinator epoch; an agent that knows a higher one ignores this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedMessage:
    """How long operators took while they served, since the last message; nothing of what they worked on."""

    session: int
    pipeline: str
    digest: str
    operators: Mapping[str, OperatorProfile]
    """Variant key -> what its runs took here and gave out, for those that ran; without memory and class."""
    over_s: float
    """Time that this covers, until now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryMessage:
    """A query, written by its origin or in its name."""

    query: Query


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentMessage:
    """The plan for a query."""

    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareMessage:
    """What a worker must serve for one query, and no more."""

    query: str
    origin: str
    pipeline: str
    digest: str
    epoch: Epoch
    variants: tuple[str, ...]
    """Operator variants that it may be asked to run."""
    rate_hz: float
    cores: float
    """Mean busy cores that the query was allotted here."""
    token: str
    """What a caller has to show; random per query and epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AckMessage:
    """What an agent or worker did with an assignment or share."""

    query: str
    epoch: Epoch
    taken: bool
    reason: str = ""
    share: bool = False
    """Whether it acknowledges a share (a worker) rather than an assignment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineMessage:
    """The declarative part of a pipeline."""

    pipeline: str
    version: str
    digest: str
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker that agents may measure their link to."""

    address: str
    """Base URL of its data plane."""
    tier: Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorMessage:
    """The coordinator came up or went down."""

    online: bool
    epoch: int
    """Coordinator epoch; a receiver that knows a higher one ignores this."""
    model_address: str | None = None
    """Base URL where the coordinator serves models."""
    workers: Mapping[str, WorkerInfo] = field(default_factory=dict)
    """Site name -> worker, for those online."""


Message: TypeAlias = (
    StatusMessage
    | HelloMessage
    | TelemetryMessage
    | ProfileMessage
    | ProbeMessage
    | ServedMessage
    | QueryMessage
    | AssignmentMessage
    | ShareMessage
    | AckMessage
    | PipelineMessage
    | CoordinatorMessage
)
