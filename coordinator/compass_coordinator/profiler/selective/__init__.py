"""Selective profiling of accuracy: what to measure next, and what follows for the rest."""
