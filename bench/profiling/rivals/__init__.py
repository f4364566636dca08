"""Other ways to spend operator-seconds; each a function that works on a ``Study``."""
