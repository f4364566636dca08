"""The Compass agent: runs operators on this machine, offloads the others, and measures both."""

from compass_shared import __version__

__all__ = ["__version__"]
