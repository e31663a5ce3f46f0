"""Per-level monitors of cooperative training, and the watch that tells when it has diverged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cdrl.training.objective import Diagnostics, Measurements

MONITORS = tuple(f.name for f in dataclasses.fields(Diagnostics) if f.name != "level")


class DivergenceError(RuntimeError):
    """Training has run away or produced values that are not finite; the message names the step and what to try."""


class LevelMonitor:
    """Means of `Diagnostics` a level, over the updates since they were last asked for."""

    def __init__(self, num_levels: int, device: torch.device) -> None:
        # Sums, and below them how many values they have.
        self._sums = torch.zeros(2 * len(MONITORS), num_levels, dtype=torch.float64, device=device)

    def add(self, diagnostics: Diagnostics) -> None:
        """Add those of an update."""
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


class Sign(NamedTuple):
    """A diagnostic whose absolute value has left what training ever needs, and what then helps."""

    limit: float
    meaning: str
    advice: str


_ENERGY = "lower training.energy_lr or schedule.step_coefficient, or set energy.spectral_norm=true"
_CHAIN = "lower schedule.step_coefficient, training.energy_lr or training.initializer_lr"
SIGNS = {
    "gradient_norm": Sign(300, "the energy's gradient overwhelms the noise", _ENERGY),
    "energy_gap": Sign(1e5, "refined and true samples differ too much in f-hat", _ENERGY),
    "magnitude": Sign(1e6, "f-hat grows without bound", _ENERGY),
    "displacement": Sign(3e3, "chains run away", _CHAIN),
    "reach": Sign(20, "chains leave the data's range", _CHAIN),
}
"""Limits ten times and more beyond what runs that end well show anywhere, which those that end badly pass at once.

The largest values seen on digits of 8 and 32 pixels, latents and points, under every ablation and from random weights
on: gradient norm 30, energy gap 200, |f-hat| 250, displacement 110, reach 4. Runs that diverge multiply theirs by two
to ten a step.
"""


class DivergenceWatch:
    """The worst signs a level since the last verdict. Adding a batch waits for no device; the verdict does."""

    def __init__(self, num_levels: int, device: torch.device) -> None:
        self._worst = torch.zeros(len(SIGNS), num_levels, device=device)
        self._finite = torch.ones((), dtype=torch.bool, device=device)

    def add(self, measured: Measurements) -> None:
        """Add what an update has measured."""
        diagnostics = measured.diagnostics
        values = torch.stack([getattr(diagnostics, name).abs() for name in SIGNS])
        values = values.nan_to_num(nan=torch.inf)
        self._worst.scatter_reduce_(1, diagnostics.level.expand_as(values), values, "amax")
        for loss in measured.losses.values():
            self._finite &= torch.isfinite(loss).all()

    def verdict(self, parameters: Iterable[Tensor]) -> str | None:
        """What is wrong, at which level, and what to try; None where nothing is, the same in all processes.

        Args:
            parameters: weights that must be finite.
        """
        norm = torch.nn.utils.get_total_norm([parameter.detach() for parameter in parameters])
        limits = torch.tensor([sign.limit for sign in SIGNS.values()], device=self._worst.device)
        excess = self._worst / limits[:, None]
        not_finite = (~(self._finite & torch.isfinite(norm))).float().reshape(1)
        *flat, broken = largest_over_processes(torch.cat([excess.flatten(), not_finite])).tolist()
        num_levels = excess.shape[1]
        self._worst.zero_()
        self._finite.fill_(True)
        worst = max(flat)
        if worst > 1:
            index, level = divmod(flat.index(worst), num_levels)
            name, sign = list(SIGNS.items())[index]
            found = f"{name} {worst * sign.limit:.3g}, limit {sign.limit:.3g}"
            return f"level {level}: {sign.meaning} ({found}): {sign.advice}"
        return f"losses or weights are not finite: {_ENERGY}" if broken else None


def summed_over_processes(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes, in a new tensor."""
    values = values.clone()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def largest_over_processes(values: Tensor) -> Tensor:
    """The largest of ``values`` over all processes, element by element, in a new tensor."""
    values = values.clone()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values
