"""Cooperative training: Algorithm 1, the update of both networks, the training loop and what watches it."""
