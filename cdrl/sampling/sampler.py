"""Algorithm 2 over a proposal and a log density, whatever they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from cdrl.sampling.kernels import (
    Kernel,
    LogDensity,
    Position,
    Target,
    langevin,
    recovery,
    restricted_to,
    tempered,
    with_gradient,
)
from cdrl.sampling.noise import Draw, ImageNoise
from cdrl.sampling.settings import ChainPlan
from cdrl.schedule import NoiseSchedule

Propose = Callable[[Tensor, int], Tensor]
"""(x_next [N, *shape], level) -> mean of the proposal of y, [N, *shape]."""
LevelLogDensity = Callable[[Tensor, int], Tensor]
"""(y [N, *shape], level) -> log density up to a constant, [N]."""
Constrain = Callable[[Tensor, int], Tensor]
"""(y [N, *shape], level) -> y with its known part put back, as a new tensor.

It is an affine projection of y, always the same one at a level. The sampler calls it after every move, and before it
asks for a density.
"""


class Callback(Protocol):
    """Sees every move: step 0 is the proposal, step k the chain's k-th step; ``y`` is [N, *shape]."""

    def __call__(self, *, level: int, step: int, y: Tensor) -> None: ...


@torch.no_grad()
def sample(
    schedule: NoiseSchedule,
    propose: Propose,
    log_density: LevelLogDensity,
    noise: ImageNoise,
    shape: tuple[int, ...],
    plan: ChainPlan,
    constrain: Constrain | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw one sample for each stream of ``noise`` (Algorithm 2): x_0, denoised once, [N, *shape].

    Args:
        plan: steps, sizes and kernel of the chains, see `ChainPlan`.
        constrain: puts the known part of images back, for inpainting.
        callback: sees every move.

    Raises:
        ValueError: the plan has not one number of steps for each level.
    """
    if len(plan.steps) != schedule.num_levels:
        raise ValueError(f"steps: expected a number for each of {schedule.num_levels} levels, found {len(plan.steps)}")
    schedule = schedule.to(noise.device)
    step_sizes = plan.step_scale * math.sqrt(plan.temperature) * schedule.step_size
    put_back, report = constrain or _unconstrained, callback or _unreported
    if noise.device.type != "cpu" and plan.kernel is langevin and constrain is None:
        noise.expect([Draw("normal", shape)] * _normal_draws(plan))
    x = noise.normal(shape)  # x_T ~ N(0, I)
    for level in reversed(range(schedule.num_levels)):
        for visit in range(plan.passes):
            if visit:  # x_{t+1} anew from x_t
                x = schedule.alpha_step[level] * x + schedule.sigma_step[level] * noise.normal(shape)
            target = recovery_target(log_density, x, schedule, level, plan.temperature)  # eq. 3
            if constrain is not None:
                target = restricted_to(target, at_level(constrain, level))
            y = propose(x, level) + schedule.proposal_std[level] * noise.normal(shape)  # eq. 6
            chain = Position(put_back(y, level), target)
            report(level=level, step=0, y=chain.y)
            for step in range(1, plan.steps[level] + 1):
                chain = plan.kernel(chain, step_sizes[level], noise)  # eq. 5
                chain = chain.moved(put_back(chain.y, level))
                report(level=level, step=step, y=chain.y)
            x = chain.y / schedule.alpha_y[level]
    return denoised(schedule, log_density, x, plan.denoise)  # eq. 18


def _normal_draws(plan: ChainPlan) -> int:
    """How many normal numbers Algorithm 2 draws for each value of an image, if its chains are Langevin's."""
    visits = plan.passes * len(plan.steps)
    return 1 + visits + (visits - len(plan.steps)) + plan.passes * sum(plan.steps)


def recovery_target(
    log_density: LevelLogDensity, x_next: Tensor, schedule: NoiseSchedule, level: int, temperature: float = 1.0
) -> Target:
    """log p(y_t | x_{t+1}) / temperature with its gradient (eq. 3); the marginal density at the highest level."""
    marginal = with_gradient(at_level(log_density, level))
    return tempered(recovery(marginal, x_next, schedule.precision[level]), temperature)


def at_level(function: Callable[[Tensor, int], Tensor], level: int) -> LogDensity:
    """A function of (y, level) as a function of y alone."""
    return lambda y: function(y, level)


def refine(position: Position, step_size: Tensor, noise: ImageNoise, steps: int, kernel: Kernel = langevin) -> Position:
    """Run a chain for ``steps`` moves (eq. 5)."""
    for _ in range(steps):
        position = kernel(position, step_size, noise)
    return position


def denoised(schedule: NoiseSchedule, log_density: LevelLogDensity, x: Tensor, factor: float, level: int = 0) -> Tensor:
    """(x_t + c sigma_bar_t^2 grad_{x_t} f(alpha_y x_t)) / alpha_bar_t, eq. 18 at t = 0; c = 1 is the posterior mean."""
    if factor:
        alpha = schedule.alpha_y[level]
        _, gradient = with_gradient(at_level(log_density, level))(alpha * x)
        x = x + factor * schedule.sigma_bar[level] ** 2 * alpha * gradient
    return x / schedule.alpha_bar[level]


def _unconstrained(y: Tensor, level: int) -> Tensor:
    return y


def _unreported(*, level: int, step: int, y: Tensor) -> None:
    pass
