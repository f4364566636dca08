"""Knows a whole configuration space from a small part of its measurements."""
