"""Likelihoods of energy-based models: log normalizers in a bracket, and what they make of log densities."""
