"""Pretending to be a slower device on a slower network."""
