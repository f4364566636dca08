"""Models that no registry carries ready: a function of the bundle makes them of others that one does.

    [models.classifier]
    uri = "made:.convert:classifier"     # module and function of the bundle's own folder
    assets = { weights = "classifier-weights" }
    sha256 = "..."                       # of what it makes

The function gets the paths of its assets by name and returns the model's bytes. They are held against the
hash like any other model's, so it has to make the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compass_agent.bundle_code import code_sha256_of, function_of, import_folder
from compass_agent.models.progress import Limits
from compass_shared.errors import ConfigError, ModelLoadError
from compass_shared.model_ref import ModelRef


def make_model(
    ref: ModelRef, target: Path, *, base: Path | None, parts: Mapping[str, Path], limits: Limits
) -> Path:
    """Make a model and write it to ``target``.

    Args:
        ref: With a URI of ``made:``.
        target: Where to.
        base: The bundle's folder.
        parts: Verified files of its assets.
        limits: Bounds on its size.

    Raises:
        ModelLoadError: If the function is missing or fails, or what it makes is no model or too large.
    """
    if base is None:
        raise ModelLoadError(f"{ref.uri} is made by its bundle's code, and no bundle is given")
    try:
        package = import_folder(base, "models", code_sha256_of(base))
        function = function_of(package, ref.origin.location, base, "models")
    except ConfigError as error:
        raise ModelLoadError(str(error)) from error
    try:
        made = function(dict(parts))
    except (Exception, SystemExit) as error:  # it is the bundle's code, which may raise anything
        raise ModelLoadError(f"{ref.uri} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, bytes):
        raise ModelLoadError(f"{ref.uri} made {type(made).__name__}, not bytes")
    if len(made) > limits.max_member_bytes:
        raise ModelLoadError(f"{ref.uri} made {len(made)} bytes, more than {limits.max_member_bytes}")
    target.write_bytes(made)
    return target
