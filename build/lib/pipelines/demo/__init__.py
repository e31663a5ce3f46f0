"""A page to try trained models on, served on this machine alone."""
