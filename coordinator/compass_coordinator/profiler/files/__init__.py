"""Profiles as files: what a run found, what two files say differently, and several put together."""
