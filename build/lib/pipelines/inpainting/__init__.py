"""Filling in images of which only a part is known."""
