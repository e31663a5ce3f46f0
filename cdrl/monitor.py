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
    """Running means of `Diagnostics` a level."""

    def __init__(self, num_levels: int, device: torch.device) -> None:
        self._sums = torch.zeros(1 + len(MONITORS), num_levels, dtype=torch.float64, device=device)

    def add(self, diagnostics: Diagnostics) -> None:
        """Add one batch."""
        values = [torch.ones_like(diagnostics.energy_gap), *(getattr(diagnostics, name) for name in MONITORS)]
        self._sums.index_add_(1, diagnostics.level, torch.stack(values).double())

    def means(self) -> dict[str, list[float]]:
        """Mean a level since the last call, over all processes; NaN where a level was not drawn."""
        sums = summed_over_processes(self._sums)
        means = (sums[1:] / sums[0]).tolist()
        self._sums.zero_()
        return dict(zip(MONITORS, means, strict=True))


def summed_over_processes(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes, in a new tensor."""
    values = values.clone()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values
