"""Measuring samples against real images: features, distances, judges."""
