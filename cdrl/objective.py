"""Algorithm 1: one batch in, two losses and diagnostics out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl.mcmc import Position, recovery, with_gradient
from cdrl.model import log_density
from cdrl.networks import FoldedEnergy
from cdrl.noise import ImageNoise
from cdrl.sampler import refine
from cdrl.schedule import NoiseSchedule, per_image

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(grid [N, *shape], logsnr [N], label [N]) -> f-hat [N] or a grid [N, *shape]."""


@dataclass(frozen=True)
class Diagnostics:
    """What the monitors read, one value an image ([N], detached)."""

    level: Tensor
    energy_gap: Tensor
    """f-hat(refined) - f-hat(data): 0 on average where the energy fits."""
    gradient_norm: Tensor
    """Root mean square over the grid of s_t grad f where the chain's last step began; the noise's is 1."""
    displacement: Tensor
    """Root mean square over the grid of refined - proposed, in units of s_t."""
    magnitude: Tensor
    """|f-hat(data)|, whose growth without bound is a sign of trouble."""


@dataclass(frozen=True)
class Losses:
    """The two losses (scalars with gradients) and the diagnostics of a batch."""

    energy: Tensor
    initializer: Tensor
    diagnostics: Diagnostics


def cooperative_losses(
    x0: Tensor,
    label: Tensor,
    noise: ImageNoise,
    schedule: NoiseSchedule,
    chain_energy: FoldedEnergy,
    energy: Network,
    initializer: Network,
    steps: int,
    label_dropout: float,
) -> Losses:
    """Losses of the energy (eq. 7) and of the initializer (eq. 8, without its level weights).

    The pair x_t, x_{t+1} shares its noise (eq. 9). The chain runs on ``chain_energy``, a detached fold; the
    energy sees refined and true samples as one batch.

    Args:
        x0: clean grids [N, *shape].
        label: class ids [N], -1 for null; each is dropped to null with probability ``label_dropout``.
        noise: one stream an image.
        energy, initializer: the networks to be trained, each called once.
        steps: K.
    """
    level = noise.integers(schedule.num_levels)
    label = torch.where(noise.uniform() < label_dropout, -1, label)
    epsilon = noise.normal(x0.shape[1:])
    alpha_y, step_size = schedule.alpha_y[level], schedule.step_size[level]
    y = per_image(alpha_y * schedule.alpha_bar[level], x0) * x0
    y = y + per_image(alpha_y * schedule.sigma_bar[level], x0) * epsilon
    x_next = per_image(schedule.alpha_bar[level + 1], x0) * x0
    x_next = x_next + per_image(schedule.sigma_bar[level + 1], x0) * epsilon

    proposed = initializer(x_next, schedule.logsnr[level + 1], label)
    proposed = proposed + per_image(schedule.proposal_std[level], x0) * noise.normal(x0.shape[1:])
    start = proposed.detach()
    condition = chain_energy.condition(schedule.logsnr[level], label)
    marginal = with_gradient(lambda grid: log_density(chain_energy(grid, condition), grid, schedule, level))
    precision = schedule.precision[level]
    before = refine(Position(start, recovery(marginal, x_next, precision)), step_size, noise, max(steps - 1, 0))
    refined = refine(before, step_size, noise, min(steps, 1)).y

    both = torch.cat([refined, y])
    f_refined, f_data = energy(both, schedule.logsnr[level].repeat(2), label.repeat(2)).chunk(2)
    weight = schedule.loss_weight[level]
    steepness = before.gradient + per_image(precision, start) * (before.y - x_next)
    return Losses(
        energy=(weight * (f_refined - f_data)).mean(),
        initializer=(refined - proposed).flatten(1).square().sum(dim=1).mean(),
        diagnostics=Diagnostics(
            level=level,
            energy_gap=(f_refined - f_data).detach(),
            gradient_norm=_rms(steepness) * step_size,
            displacement=_rms(refined - start) / step_size,
            magnitude=f_data.detach().abs(),
        ),
    )


def _rms(grid: Tensor) -> Tensor:
    return grid.flatten(1).square().mean(dim=1).sqrt()
