"""What the agent and the coordinator both speak: domain types, files, messages and the wire."""

__version__ = "0.1.0"
