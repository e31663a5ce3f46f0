"""Generative models at equal compute: the same data, the same CPU seconds of training on one thread, one table."""
