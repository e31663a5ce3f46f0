"""Per-level monitors of cooperative training, summed over steps and processes between two log lines."""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor

from cdrl.objective import Diagnostics

MONITORS = tuple(f.name for f in dataclasses.fields(Diagnostics) if f.name != "level")


class DivergenceError(RuntimeError):
    """Training has produced values that are not finite; the message names the step and what to try."""


class LevelMonitor:
    """Running means a level of what was measured of `Diagnostics`."""

    def __init__(self, num_levels: int, device: torch.device) -> None:
        # Sums, and below them how many values they have.
        self._sums = torch.zeros(2 * len(MONITORS), num_levels, dtype=torch.float64, device=device)

    def add(self, diagnostics: Diagnostics) -> None:
        """Add one batch."""
        values = torch.stack([getattr(diagnostics, name) for name in MONITORS])
        measured = ~values.isnan()
        both = torch.cat([torch.where(measured, values, 0), measured])
        self._sums.index_add_(1, diagnostics.level, both.double())

    def means(self) -> dict[str, list[float]]:
        """Mean a level since the last call, over all processes; NaN where nothing was measured."""
        sums, counts = summed_over_processes(self._sums).chunk(2)
        means = (sums / counts).tolist()
        self._sums.zero_()
        return dict(zip(MONITORS, means, strict=True))


def summed_over_processes(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes, in a new tensor."""
    values = values.clone()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values
