"""Minutes of a meeting, by a generator behind an endpoint."""
