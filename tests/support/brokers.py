"""Real brokers for tests, each a child process on loopback."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from compass_coordinator.demo.broker import end_process, free_port, wait_for_listener

_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_queued_messages 0
log_type error
{extra}
"""


def mosquitto_binary() -> str:
    """Path of mosquitto; skips the test where there is none."""
    found = shutil.which("mosquitto", path="/usr/local/sbin:/usr/sbin:/sbin") or shutil.which("mosquitto")
    if found is None:
        pytest.skip("mosquitto is not installed (Debian: apt-get install mosquitto)")
    return found


class Mosquitto:
    """A mosquitto on a free port, which ``stop`` and ``start`` keep.

    Args:
        folder: Where its configuration goes.
        extra: More lines of configuration, after the listener's.
    """

    def __init__(self, folder: Path, extra: str = "") -> None:
        self._binary = mosquitto_binary()
        self._config = folder / "mosquitto.conf"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self._config.write_text(_CONFIG.format(port=self.port, extra=extra))

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen([self._binary, "-c", str(self._config)])
        if not wait_for_listener(self._process, self.port, 10.0):
            self.stop()
            raise RuntimeError(f"mosquitto does not listen on port {self.port}")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            end_process(process, 5.0)

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
