"""Data that Compass brings: device profiles and example bundles."""

from __future__ import annotations

from pathlib import Path

from compass_shared.errors import ConfigError

_HERE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """Folder of packaged data: beside the code in a wheel, at the top of a checkout.

    Args:
        name: ``device_profiles`` or ``examples``.

    Raises:
        ConfigError: If this installation does not have it.
    """
    for folder in (_HERE / "data" / name, _HERE.parent.parent / name):
        if folder.is_dir():
            return folder
    raise ConfigError(f"this installation of compass-agent brings no {name}; install it again")
