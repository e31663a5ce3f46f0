"""Experiments on trained runs and on configurations: guidance, steps, roles, long chains, ablations, densities."""
