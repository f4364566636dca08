"""``compass-agent run --input``: push files through a pipeline, print what comes out, and end."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compass_agent.config import AgentConfig
from compass_agent.shell import AgentShell
from compass_shared.errors import CompassError, ConfigError
from compass_shared.values import Value

MAX_INPUT_BYTES = 64 * 1024 * 1024


async def serve_once(config: AgentConfig, files: Sequence[Path]) -> int:
    """Send each file's bytes as a request of the one pipeline that is installed.

    Returns:
        0 if all were answered, 1 if one was not.

    Raises:
        ConfigError: If a file cannot be read, or several pipelines are installed.
    """
    if len(config.bundles) != 1:
        raise ConfigError("--input takes one --bundle: which pipeline else?", field="--input")
    values = [_content(file) for file in files]
    shell = AgentShell(config)
    await shell.start()
    failed = False
    try:
        (pipeline,) = shell.bundles
        await shell.open_models(pipeline)
        for file, value in zip(files, values, strict=True):
            try:
                outcome = await shell.request(pipeline, value)
                error: CompassError | None = outcome.error
            except CompassError as refused:
                error = refused
            if error is not None:
                failed = True
                print(f"{file}: {error}", file=sys.stderr)
                continue
            line = {"input": str(file), "output": plain(outcome.value), "latency_s": outcome.latency_s}
            print(json.dumps(line), flush=True)
    finally:
        await shell.close()
    return 1 if failed else 0


def _content(file: Path) -> bytes:
    try:
        if file.stat().st_size > MAX_INPUT_BYTES:
            raise ConfigError(f"{file} is larger than {MAX_INPUT_BYTES} bytes", field="--input")
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}", field="--input") from error


def plain(value: Value) -> Any:
    """A value as JSON has it: arrays as lists, bytes as their number."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
