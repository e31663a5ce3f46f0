"""Per-level monitors of cooperative training, and the watch that tells when it has diverged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cdrl.runs.run import load_tensors, save_tensors
from cdrl.training.engine import World
from cdrl.training.objective import Diagnostics, Measurements

MONITORS = tuple(f.name for f in dataclasses.fields(Diagnostics) if f.name != "level")


class DivergenceError(RuntimeError):
    """Training has run away or produced values that are not finite; the message names the step and what to try."""


class LevelMonitor:
    """Means of `Diagnostics` a level, over the updates since they were last asked for.

    Attributes:
        sums: what they are made of, this process's share; part of a checkpoint, see `save_sums`.
    """

    def __init__(self, num_levels: int, device: torch.device) -> None:
        # Sums of each monitor, and below them how many values they have.
        self.sums = {"levels": torch.zeros(2 * len(MONITORS), num_levels, dtype=torch.float64, device=device)}

    def add(self, diagnostics: Diagnostics) -> None:
        """Add those of an update."""
        values = torch.stack([getattr(diagnostics, name) for name in MONITORS])
        measured = ~values.isnan()
        both = torch.cat([torch.where(measured, values, 0), measured])
        self.sums["levels"].index_add_(1, diagnostics.level, both.double())

    def means(self) -> dict[str, list[float]]:
        """Mean a level since the last call, over all processes; NaN where nothing was measured."""
        sums, counts = summed_over_processes(self.sums["levels"]).chunk(2)
        self.sums["levels"].zero_()
        return dict(zip(MONITORS, (sums / counts).tolist(), strict=True))


class RunningMeans:
    """Means of figures by their names, over the updates since they were last asked for.

    Attributes:
        sums: sum and number of each figure's values, [2] each, this process's share; part of a checkpoint, see
            `save_sums`.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums: dict[str, Tensor] = {}
        self._device = device

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add those of an update: one number or several of each figure that was measured."""
        for name, value in values.items():
            sums = self.sums.setdefault(name, torch.zeros(2, dtype=torch.float64, device=self._device))
            sums += torch.stack([value.double().sum(), torch.full((), value.numel(), device=self._device)])

    def means(self) -> dict[str, float]:
        """Means since `forget` was last called, over all processes."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        sums, counts = summed_over_processes(torch.stack([self.sums[name] for name in names])).unbind(dim=1)
        return dict(zip(names, (sums / counts).tolist(), strict=True))

    def forget(self) -> None:
        """Begin anew."""
        self.sums.clear()


SUMS_FILE = "sums.safetensors"


def save_sums(folder: Path, parts: Mapping[str, Mapping[str, Tensor]], world: World) -> None:
    """Write the running sums of all processes into a checkpoint; every process calls it.

    Args:
        parts: sums by their names, by the name of what they belong to.
    """
    rows = {f"{part}.{name}": sums for part, named in parts.items() for name, sums in named.items()}
    rows = {name: gathered_over_processes(sums, world) for name, sums in rows.items()}
    if world.is_main:
        save_tensors(folder / SUMS_FILE, rows)


def load_sums(folder: Path, world: World) -> dict[str, dict[str, Tensor]]:
    """This process's share of what `save_sums` wrote; nothing from a checkpoint of before there were any.

    Under another number of processes than wrote them, the main one takes up all.

    Raises:
        RunError: the file is damaged.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    path = folder / SUMS_FILE
    for key, rows in (load_tensors(path) if path.exists() else {}).items():
        part, _, name = key.partition(".")
        share = rows[world.rank] if len(rows) == world.size else rows.sum(dim=0) * world.is_main
        parts.setdefault(part, {})[name] = share.to(world.device)
    return parts


class Sign(NamedTuple):
    """A sign of divergence: the limit of a diagnostic, what exceeding it means, and what helps."""

    limit: float
    meaning: str
    advice: str
    of_energy: bool = True
    """Whether the spectral norm of the energy, where it is off, would help."""


_ENERGY = "lower training.energy_lr or schedule.step_coefficient"
_CHAIN = "lower schedule.step_coefficient, training.energy_lr or training.initializer_lr"
_SPECTRAL_NORM = ", or set energy.spectral_norm=true"
SIGNS = {
    "gradient_norm": Sign(300, "the energy's gradient overwhelms the noise", _ENERGY),
    "energy_gap": Sign(1e5, "refined and true samples differ too much in f-hat", _ENERGY),
    "magnitude": Sign(1e6, "f-hat grows without bound", _ENERGY),
    "displacement": Sign(3e3, "chains run away", _CHAIN, of_energy=False),
    "reach": Sign(20, "chains leave the data's range", _CHAIN, of_energy=False),
}
"""Limits ten times and more beyond what runs that end well show anywhere, which those that end badly pass at once.

The largest values seen on digits of 8 and 32 pixels, latents and points, under every ablation and from random weights
on: gradient norm 30, energy gap 200, |f-hat| 250, displacement 110, reach 4. Runs that diverge multiply theirs by two
to ten a step.
"""


class DivergenceWatch:
    """The worst signs a level since the last verdict. Adding a batch waits for no device; the verdict does.

    Args:
        spectral_norm: whether the energy has it: what is on already is not advised.
    """

    def __init__(self, num_levels: int, device: torch.device, *, spectral_norm: bool) -> None:
        self._norm_advice = "" if spectral_norm else _SPECTRAL_NORM
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
            advice = sign.advice + (self._norm_advice if sign.of_energy else "")
            return f"level {level}: {sign.meaning} ({found}): {advice}"
        return f"losses or weights are not finite: {_ENERGY}{self._norm_advice}" if broken else None


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


def gathered_over_processes(values: Tensor, world: World) -> Tensor:
    """The ``values`` of all processes, in the order of their ranks: [processes, *shape]."""
    if world.size == 1:
        return values[None]
    rows = [torch.empty_like(values) for _ in range(world.size)]
    dist.all_gather(rows, values)
    return torch.stack(rows)
