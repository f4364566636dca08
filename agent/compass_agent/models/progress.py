"""What the model store tells while it works, and how far it may go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


class State(str, Enum):
    """Where the fetching of one model stands."""

    WAITING = "waiting"
    """Another thread or process is fetching the same thing."""
    DOWNLOADING = "downloading"
    MAKING = "making"
    """The bundle's code makes it of other models."""
    VERIFYING = "verifying"
    REFUSED = "refused"
    """A peer sent nothing usable; the next source is asked."""
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step in the fetching of one model."""

    name: str
    state: State
    source: str
    """A peer's address, the model's URI, or ``cache``."""
    done_bytes: int = 0
    total_bytes: int = 0
    """0 when not known."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what a fetch may take; whatever exceeds one ends in a ModelLoadError."""

    max_archive_bytes: int = 2 << 30
    max_member_bytes: int = 1 << 30
    """Also for a model without an archive, and for what is unpacked on the way to a byte range."""
    peer_timeout_s: float = 5.0
    """Longest silence of a peer."""
    idle_timeout_s: float = 60.0
    """Longest silence of any other server."""
    total_timeout_s: float = 1800.0
    """Longest download as a whole."""


ProgressCallback: TypeAlias = Callable[[Progress], None]
"""Called in the thread that fetches."""

BytesCallback: TypeAlias = Callable[[int, int], None]
"""Called with the bytes done and the total (0 when not known)."""


class Reporter:
    """Turns the steps of one fetch into Progress values.

    Args:
        name: The model's name.
        callback: Whom to tell; None for nobody.
    """

    def __init__(self, name: str, callback: ProgressCallback | None) -> None:
        self.name = name
        self._callback = callback

    def tell(
        self, state: State, source: str, *, done_bytes: int = 0, total_bytes: int = 0, detail: str = ""
    ) -> None:
        """Report one step."""
        if self._callback is None:
            return
        step = Progress(
            name=self.name,
            state=state,
            source=source,
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            detail=detail,
        )
        self._callback(step)

    def downloading(self, source: str, stated_bytes: int) -> BytesCallback:
        """A callback for a download whose size is stated in advance (0 when it is not)."""

        def on_bytes(done_bytes: int, total_bytes: int) -> None:
            total = total_bytes or stated_bytes
            # A tool's working files count as done bytes: never show more than there is to do.
            done = min(done_bytes, total) if total else done_bytes
            self.tell(State.DOWNLOADING, source, done_bytes=done, total_bytes=total)

        on_bytes(0, 0)
        return on_bytes
