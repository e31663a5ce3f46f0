"""Algorithm 1: one batch in, two losses and diagnostics out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl.model import log_density, proposal_mean
from cdrl.networks import FoldedEnergy
from cdrl.sampling.kernels import Position, langevin_log_ratio, recovery, with_gradient
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import refine
from cdrl.schedule import NoiseSchedule, per_image

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(grid [N, *shape], logsnr [N], label [N]) -> f-hat [N] or a grid [N, *shape]."""


@dataclass(frozen=True)
class Diagnostics:
    """What the monitors read, one value an image ([N], detached); NaN where something was not measured."""

    level: Tensor
    energy_gap: Tensor
    """f-hat(refined) - f-hat(data): 0 on average where the energy fits."""
    gradient_norm: Tensor
    """Root mean square over the grid of s_t grad f where the chain's last step began; the noise's is 1."""
    displacement: Tensor
    """Root mean square over the grid of refined - proposed, in units of s_t."""
    magnitude: Tensor
    """|f-hat(data)|, whose growth without bound is a sign of trouble."""
    reach: Tensor
    """Largest absolute value of the refined sample, over the largest of all true ones in the batch."""
    acceptance: Tensor
    """Probability that Metropolis and Hastings would have let the chain's last step pass: 1 for steps short enough."""
    initializer_share: Tensor
    """Share of the way from x_{t+1} to where the chain ended that the noised proposal had gone.

    <proposed - x_{t+1}, refined - x_{t+1}> / |refined - x_{t+1}|^2: the chain's own share is the rest, 1 less this.
    x_{t+1} = y_t + sigma eps needs no scaling to be compared with y_t, and is where a chain without an initializer
    begins: that one has a share of 0, a proposal that the chain leaves where it is has 1.
    """


@dataclass(frozen=True)
class Losses:
    """The losses (scalars with gradients) and the diagnostics of a batch."""

    energy: Tensor
    initializer: Tensor | None
    """None where there is no initializer."""
    diagnostics: Diagnostics

    def values(self) -> dict[str, Tensor]:
        """The losses that there are under the names of their metrics, detached."""
        losses = {"energy_loss": self.energy, "initializer_loss": self.initializer}
        return {name: loss.detach() for name, loss in losses.items() if loss is not None}


def cooperative_losses(
    x0: Tensor,
    label: Tensor,
    noise: ImageNoise,
    schedule: NoiseSchedule,
    chain_energy: FoldedEnergy,
    energy: Network,
    initializer: Network | None,
    steps: int,
    label_dropout: float,
    *,
    pairs: str = "shared_noise",
    predicts: str = "y",
    target: str = "refined",
    measure_acceptance: bool = False,
) -> Losses:
    """Losses of the energy (eq. 7) and of the initializer (eq. 8, without its level weights).

    The chain runs on ``chain_energy``, a detached fold; the energy sees refined and true samples as one batch.

    Args:
        x0: clean grids [N, *shape].
        label: class ids [N], -1 for null; each is dropped to null with probability ``label_dropout``.
        noise: one stream an image.
        energy, initializer: the networks to be trained, each called once; without an initializer the chain starts
            at x_{t+1}.
        steps: K.
        pairs: x_{t+1} has the noise of x_t (``shared_noise``, eq. 9), or one more step's (``independent_noise``).
        predicts: what the initializer's output stands for, see `proposal_mean`.
        target: what the proposal is regressed on: ``refined``, where the chain ends, or ``data``, the true y_t.
        measure_acceptance: spend one more gradient on the diagnostics' ``acceptance``.
    """
    level = noise.integers(schedule.num_levels)
    label = torch.where(noise.uniform() < label_dropout, -1, label)
    epsilon = noise.normal(x0.shape[1:])
    alpha_y, step_size = schedule.alpha_y[level], schedule.step_size[level]
    y = per_image(alpha_y * schedule.alpha_bar[level], x0) * x0
    y = y + per_image(alpha_y * schedule.sigma_bar[level], x0) * epsilon
    if pairs == "shared_noise":
        x_next = per_image(schedule.alpha_bar[level + 1], x0) * x0
        x_next = x_next + per_image(schedule.sigma_bar[level + 1], x0) * epsilon
    else:
        x_next = per_image(schedule.alpha_step[level] / alpha_y, x0) * y
        x_next = x_next + per_image(schedule.sigma_step[level], x0) * noise.normal(x0.shape[1:])

    proposed = x_next
    if initializer is not None:
        output = initializer(x_next, schedule.logsnr[level + 1], label)
        proposed = proposal_mean(output, x_next, schedule, level, predicts)
        proposed = proposed + per_image(schedule.proposal_std[level], x0) * noise.normal(x0.shape[1:])
    start = proposed.detach()
    condition = chain_energy.condition(schedule.logsnr[level], label)
    marginal = with_gradient(lambda grid: log_density(chain_energy(grid, condition), grid, schedule, level))
    precision = schedule.precision[level]
    before = refine(Position(start, recovery(marginal, x_next, precision)), step_size, noise, max(steps - 1, 0))
    last = refine(before, step_size, noise, min(steps, 1))
    refined = last.y

    both = torch.cat([refined, y])
    f_refined, f_data = energy(both, schedule.logsnr[level].repeat(2), label.repeat(2)).chunk(2)
    weight = schedule.loss_weight[level]
    initializer_loss = None
    if initializer is not None:
        error = (refined if target == "refined" else y) - proposed
        initializer_loss = error.flatten(1).square().sum(dim=1).mean()
    acceptance = torch.full_like(weight, math.nan)
    if measure_acceptance:
        acceptance = langevin_log_ratio(before, last, step_size).exp().clamp(max=1)
    way, begun = (refined - x_next).flatten(1), (start - x_next).flatten(1)
    steepness = before.gradient + per_image(precision, start) * (before.y - x_next)
    return Losses(
        energy=(weight * (f_refined - f_data)).mean(),
        initializer=initializer_loss,
        diagnostics=Diagnostics(
            level=level,
            energy_gap=(f_refined - f_data).detach(),
            gradient_norm=_rms(steepness) * step_size,
            displacement=_rms(refined - start) / step_size,
            magnitude=f_data.detach().abs(),
            reach=refined.flatten(1).abs().amax(dim=1) / y.abs().amax(),
            acceptance=acceptance,
            initializer_share=(begun * way).sum(dim=1) / way.square().sum(dim=1),
        ),
    )


def _rms(grid: Tensor) -> Tensor:
    return grid.flatten(1).square().mean(dim=1).sqrt()
