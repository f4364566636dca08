"""The code of a bundle: its digest, and its folder as a package.

The folder is imported under a name that follows from its path and code, so that two bundles may both have an
``operators.py``, and a bundle that changed on disk is a new package.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from compass_shared.errors import ConfigError
from compass_shared.pipeline_file import FILE_NAME


def code_sha256_of(folder: Path) -> str:
    """Digest of names and content, alike on every machine."""
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.rglob("*.py")):
            code = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{code}\n".encode())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=error.filename) from error
    return digest.hexdigest()


def import_folder(folder: Path, pipeline: str, code_sha256: str) -> str:
    """Make the folder a package; its modules are imported when asked for."""
    key = hashlib.sha256(f"{folder}\0{code_sha256}".encode()).hexdigest()[:12]
    name = f"compass_bundle_{pipeline.replace('-', '_')}_{key}"
    if name in sys.modules:
        return name
    init = folder / "__init__.py"
    if init.exists():
        spec = spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
        assert spec is not None, "a .py file always has a loader"
    else:
        spec = ModuleSpec(name, loader=None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    sys.modules[name] = module_from_spec(spec)
    try:
        if spec.loader is not None:
            spec.loader.exec_module(sys.modules[name])
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"cannot be imported: {type(error).__name__}: {error}", file=init) from error
    return name


def function_of(package: str, reference: str, folder: Path, field: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; a leading dot means the bundle's own package."""
    module_name, _, name = reference.partition(":")
    file = folder / FILE_NAME
    if module_name.startswith("."):
        module_name = f"{package}{module_name}".rstrip(".")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs code, which may raise anything
        problem = f"{reference!r} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError(problem, file=file, field=field) from error
    function = getattr(module, name, None)
    if not callable(function):
        problem = (
            f"{reference!r} is not a function" if hasattr(module, name) else f"there is no {reference!r}"
        )
        raise ConfigError(problem, file=file, field=field)
    found: Callable[..., Any] = function
    return found
