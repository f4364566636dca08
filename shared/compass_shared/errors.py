"""Every error that Compass raises on purpose.

    CompassError
    ├── ConfigError            a file or an option that a person wrote
    ├── ProfileError           measurements that are missing, stale or of another model
    ├── PlanningError          the planning problem itself
    │   └── InfeasibleError    no plan meets a query's SLO; names the query and the SLO that binds
    ├── MessageError           bytes from the wire that are not a message
    ├── TransportError         the broker or a link failed
    ├── BackendError           a model or an operator failed
    │   ├── ModelLoadError     a model could not be fetched, verified or opened
    │   └── InferenceError     an operator failed on this input
    ├── DeadlineError          the time ran out before there was an answer
    └── RefusedError           somebody who could have done it said no (not assigned, over its share, full)

Errors carry data as attributes, so that a caller never parses text. Adapters translate foreign
exceptions (paho, aiohttp, onnxruntime, OSError) into these in one place each.
"""

from __future__ import annotations

from pathlib import Path


class CompassError(Exception):
    """Base of all errors that Compass raises on purpose."""


class ConfigError(CompassError):
    """A file, option or environment variable that a person wrote is wrong.

    Args:
        problem: What is wrong and, where known, what to do next.
        file: The file, if there is one.
        field: Dotted path of the field (``operators[2].inputs``), if known.
        line: One-based line in ``file``, if known.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: Path | str | None = None,
        field: str | None = None,
        line: int | None = None,
    ) -> None:
        self.problem = problem
        self.file = str(file) if file is not None else None
        self.field = field
        self.line = line
        place = "".join(
            part
            for part in (
                self.file or "",
                f":{line}" if line is not None else "",
                f" [{field}]" if field else "",
            )
        ).strip()
        super().__init__(f"{place}: {problem}" if place else problem)


class ProfileError(CompassError):
    """Measurements are missing, unreadable or belong to another model or pipeline."""


class PlanningError(CompassError):
    """The planning problem is malformed or could not be solved."""


class InfeasibleError(PlanningError):
    """No plan meets the SLO of one query.

    Args:
        query: Name of the query.
        binding: The objective that cannot be met: ``latency``, ``accuracy``, ``cost`` or ``capacity``.
        detail: One sentence a person can act on.
    """

    def __init__(self, query: str, binding: str, detail: str) -> None:
        self.query = query
        self.binding = binding
        self.detail = detail
        super().__init__(f"query {query!r}: {binding} cannot be met: {detail}")


class MessageError(CompassError):
    """Bytes from the wire are not a valid message: too long, not MessagePack, or of another shape."""


class TransportError(CompassError):
    """The broker, a worker or a link failed; the same call may succeed later."""


class BackendError(CompassError):
    """A runtime, a model or an operator failed."""


class ModelLoadError(BackendError):
    """A model could not be fetched, verified or opened.

    Args:
        problem: What went wrong.
        model: Name or URI of the model, if known.
        expected_sha256: Hash that the pipeline names, when hashes differ.
        actual_sha256: Hash of what was found, when hashes differ.
    """

    def __init__(
        self,
        problem: str,
        *,
        model: str | None = None,
        expected_sha256: str | None = None,
        actual_sha256: str | None = None,
    ) -> None:
        self.model = model
        self.expected_sha256 = expected_sha256
        self.actual_sha256 = actual_sha256
        super().__init__(f"{model}: {problem}" if model else problem)


class InferenceError(BackendError):
    """An operator failed on one input.

    Args:
        operator: Name of the operator.
        problem: What went wrong.
    """

    def __init__(self, operator: str, problem: str) -> None:
        self.operator = operator
        self.problem = problem
        super().__init__(f"operator {operator!r}: {problem}")


class DeadlineError(CompassError):
    """The deadline passed before there was an answer.

    Args:
        what: What was waited for.
        deadline_s: The time that was allowed, in seconds.
    """

    def __init__(self, what: str, deadline_s: float) -> None:
        self.what = what
        self.deadline_s = deadline_s
        super().__init__(f"{what}: no answer within {deadline_s:.3f} s")


class RefusedError(CompassError):
    """A worker, agent or coordinator refused work that it understood.

    Args:
        reason: Why, in words.
        retry_after_s: When trying again may help; None when it will not.
    """

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        self.reason = reason
        self.retry_after_s = retry_after_s
        super().__init__(reason)
