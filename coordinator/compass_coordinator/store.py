"""What a coordinator keeps over a restart: the last epoch it decided under."""

from __future__ import annotations

from pathlib import Path

import msgspec

from compass_shared.errors import ConfigError
from compass_shared.files import write_atomically

_FILE = "coordinator.json"


class _State(msgspec.Struct, frozen=True, kw_only=True):
    schema: int
    epoch: int


class FileStore:
    """A folder on disk.

    Args:
        folder: Where; None keeps nothing, and the fleet's retained epoch alone orders coordinators.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def epoch(self) -> int:
        """Last epoch saved, 0 if none.

        Raises:
            ConfigError: If the file is damaged; starting from 0 could let an old coordinator win.
        """
        if self._folder is None or not (self._folder / _FILE).exists():
            return 0
        path = self._folder / _FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=_State).epoch
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(
                f"cannot be read: {error}; remove it to start above the fleet's retained epoch", file=path
            ) from error

    def save_epoch(self, epoch: int) -> None:
        """Keep an epoch.

        Raises:
            ConfigError: If it cannot be written.
        """
        if self._folder is None:
            return
        try:
            write_atomically(self._folder / _FILE, msgspec.json.encode(_State(schema=1, epoch=epoch)))
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", file=self._folder / _FILE) from error
