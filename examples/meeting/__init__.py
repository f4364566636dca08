"""Meeting companion: what is said, its key sentences, and the passages that questions ask for."""
