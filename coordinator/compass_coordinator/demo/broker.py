"""An MQTT 5 broker that installs with pip: rumqttd, from the wheel ``iotcore``, in a process of its own.

For demos and tests. What it does not do as a real broker would (rumqttd 0.20, seen in ``tests/contract``):

- A new subscriber gets at most 100 retained messages; the rest are dropped without a word.
- When a client takes over the id of one that is still connected, the *new* client's will is published and
  forgotten. Wills carry a session number, and Compass gives every client an id of its own.
- Messages stay in order within one filter of a subscriber, not across its filters.
- It ignores the largest packet that a client asks for; ``compass_shared.mqtt`` checks sizes itself.
- A subscriber that falls behind by more than the backlog (32 MiB a filter, see ``_CONFIG``) loses the oldest.
- Nothing is kept when it ends.

``python -m compass_coordinator.demo.broker CONFIG`` is the child process: it ends when its standard input
does, so it cannot outlive whoever started it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

from compass_shared.codec import MAX_MESSAGE_BYTES
from compass_shared.errors import ConfigError, TransportError

RETAINED_LIMIT = 100
"""Retained messages that a new subscriber gets from this broker, over all its filters."""

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0
_PORT_ATTEMPTS = 5

_CONFIG = """\
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 1000
max_segment_size = {segment_bytes}
max_segment_count = 32

[v5.1]
name = "v5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = {payload_bytes}
max_inflight_count = 200
"""


class EmbeddedBroker:
    """A broker on loopback, as long as a ``with`` block lasts.

    Args:
        port: Where to listen; 0 takes a free port, and keeps it over ``stop`` and ``start``.

    Raises:
        ConfigError: If the wheel is not installed.
    """

    def __init__(self, port: int = 0) -> None:
        if importlib.util.find_spec("iotcore") is None:
            raise ConfigError(
                "the embedded broker is not installed: pip install 'compass-agent[demo]', "
                "or name a broker with --broker mqtt://HOST:1883"
            )
        self._fixed_port = port
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """URL for ``MqttTransport``; valid once started."""
        return f"mqtt://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start, and return when clients can connect.

        Raises:
            TransportError: If it does not come up.
        """
        if self._process is not None:
            return
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="compass-broker-")
        for _ in range(_PORT_ATTEMPTS):
            self._port = self._port or free_port()
            self._process = self._spawn(Path(self._folder.name) / "rumqttd.toml")
            if wait_for_listener(self._process, self._port, _START_TIMEOUT_S):
                return
            self.stop()
            self._port = self._fixed_port
        raise TransportError("the embedded broker did not come up; name another one with --broker")

    def stop(self) -> None:
        """End the process that ``start`` started; the next ``start`` takes the same port."""
        process, self._process = self._process, None
        if process is not None:
            end_process(process, _STOP_TIMEOUT_S)

    def _spawn(self, config: Path) -> subprocess.Popen[bytes]:
        config.write_text(
            _CONFIG.format(port=self._port, segment_bytes=1024 * 1024, payload_bytes=2 * MAX_MESSAGE_BYTES)
        )
        return subprocess.Popen(
            [sys.executable, "-m", "compass_coordinator.demo.broker", str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends its broker in order
        )

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def free_port() -> int:
    """A TCP port on loopback that nobody listened on a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_listener(process: subprocess.Popen[bytes], port: int, timeout_s: float) -> bool:
    """Wait until a child process listens on a loopback port.

    Returns:
        Whether it does; False when the process ended or the time ran out.
    """
    end_s = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < end_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
        time.sleep(0.02)
    return False


def end_process(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Ask a child process to end, insist after a while, and reap it."""
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _serve(config: str) -> None:
    from iotcore import IotCoreBroker  # noqa: PLC0415  # an extra

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    IotCoreBroker(config_path=config).run_forever()


if __name__ == "__main__":
    _serve(sys.argv[1])
