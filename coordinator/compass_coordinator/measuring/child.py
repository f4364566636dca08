"""One measuring process: ``compass-agent measure`` as a child that takes jobs and gives scores."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from compass_shared.errors import BackendError, ConfigError, MessageError
from compass_shared.measured import MAX_LINE_BYTES, PROCESS_ENDED, Done, Job, Ready, decode_line, encode_line

_END_TIMEOUT_S = 5.0
_LAST_WORDS_S = 1.0
"""How long one that closed its pipe may take to say why, and to end by itself."""
_TAIL_BYTES = 2000
_LAST_CHARACTERS = 300
_USAGE = 2
"""Exit code of wrong usage and wrong files."""
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Operators are charged the CPU time of their own thread, so that there must be no others."""


class MeasuringChild:
    """A child process. One thread asks it; any may end it.

    Args:
        arguments: Of ``compass-agent measure``.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the child
        self._said = ""
        """The end of what it printed to stderr, once it ended."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "compass_agent", "measure", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | _ONE_THREAD,
            # Ctrl-C reaches the profiler alone, which then ends its children.
            start_new_session=True,
        )

    def ready(self) -> Ready:
        """Wait until it can be asked; the first time, inputs are made and models are fetched.

        Raises:
            ConfigError: It refused the bundle.
            BackendError: It ended.
            MessageError: It said something else.
        """
        try:
            line = self._line()
        except _EndedError as error:
            code = self.end(_LAST_WORDS_S)
            text = self._said.removeprefix("compass-agent: ") or "it said nothing"
            if code == _USAGE:
                raise ConfigError(text) from error
            raise BackendError(f"{PROCESS_ENDED} with exit code {code}: {text}") from error
        return decode_line(line, Ready)

    def measure(self, job: Job) -> Done:
        """Have one job done.

        Raises:
            BackendError: It ended in the middle; it is of no use any more.
            MessageError: It said something else: no fault of the configs.
        """
        question = encode_line(job)
        try:
            self._send(question)
            line = self._line()
        except _EndedError as error:
            code = self.end(_LAST_WORDS_S)
            last = self._said.rpartition("\n")[2][-_LAST_CHARACTERS:]
            said = f"; it said last: {last}" if last else ""
            raise BackendError(f"{PROCESS_ENDED} with exit code {code}{said}") from error
        done = decode_line(line, Done)
        if done.id != job.id:
            raise MessageError(f"the measuring process answered job {done.id}, not {job.id}")
        return done

    def terminate(self) -> None:
        """Have it end, whatever it does; whoever waits for its answer is told."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def end(self, patience_s: float = 0.0) -> int:
        """End it, wait until it did, and return its exit code.

        Args:
            patience_s: How long it may take to end by itself, in seconds.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        self.terminate()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None, "both are pipes"
                stream.close()
        try:
            code = self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._close_log()
        return code

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None, "it is a pipe"
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: it was ended meanwhile
            raise _EndedError from error

    def _line(self) -> bytes:
        """A line of it: whole, or longer than any may be."""
        assert self._process.stdout is not None, "it is a pipe"
        try:
            line = self._process.stdout.readline(MAX_LINE_BYTES + 1)
        except (OSError, ValueError) as error:
            raise _EndedError from error
        if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
            raise _EndedError
        return line

    def _close_log(self) -> None:
        if not self._log.closed:
            size = self._log.seek(0, os.SEEK_END)
            self._log.seek(max(0, size - _TAIL_BYTES))
            self._said = self._log.read().decode(errors="replace").strip()
            self._log.close()


class _EndedError(Exception):
    """It takes no more questions, or gave no whole answer."""
