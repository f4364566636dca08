"""The Compass coordinator: keeps the fleet's state, plans, matches, and tells agents what to run."""

from compass_shared import __version__

__all__ = ["__version__"]
