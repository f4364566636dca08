"""The model store: fetch, verify, cache and carry models."""

from compass_agent.models.portable import PortableModel, export_models, import_models
from compass_agent.models.progress import Limits, Progress, ProgressCallback, State
from compass_agent.models.store import ModelStore

__all__ = [
    "Limits",
    "ModelStore",
    "PortableModel",
    "Progress",
    "ProgressCallback",
    "State",
    "export_models",
    "import_models",
]
