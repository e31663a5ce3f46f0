"""Muon, and an optimizer's state whole, whichever processes share it."""
