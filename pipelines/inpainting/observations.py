"""What is known of images to be drawn: put back by a projection, or weighed by a likelihood."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import Constrain, LevelLogDensity
from cdrl.schedule import NoiseSchedule

Seen = Callable[[Tensor], Tensor]
"""Grids [N, *shape] -> the part of them that an observation sees, by an orthogonal projection."""
Measure = Callable[[Tensor], Tensor]
"""Clean grids [N, *shape] -> what is measured of them, [N, …], differentiable."""


def cells(known: Tensor) -> Seen:
    """Sees the values where ``known``, a bool that broadcasts over grids, is true."""
    return lambda grids: torch.where(known.to(grids.device), grids, 0.0)


def block_means(factor: int) -> Seen:
    """Sees the mean of each block of factor x factor pixels."""
    return lambda grids: enlarged(F.avg_pool2d(grids, factor), factor)


def enlarged(images: Tensor, factor: int) -> Tensor:
    """Images [N, C, H, W] -> each pixel a block, [N, C, factor H, factor W]."""
    return images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def put_back(grids: Tensor, given: Tensor, seen: Seen) -> Tensor:
    """``grids`` with the part that is seen replaced by that of ``given``, both [N, *shape]."""
    return grids + seen(given - grids)


def kept(schedule: NoiseSchedule, given: Tensor, seen: Seen, noise: ImageNoise) -> Constrain:
    """After every move, put back the current noisy version of what is seen of ``given`` (Appendix C).

    It is y_t = alpha_y_t (alpha_bar_t x_0 + sigma_bar_t eps) with one draw of eps a level: the chains of a level, and
    its visits, all have one and the same density to obey. A fresh draw a move would make it another at each step.
    The quadratic term needs no care: it is a sum over pixels, and what it says of those that are put back is constant.

    Args:
        given: the clean grids, [N, *shape]; what is not seen of them does not matter.
    """
    schedule = schedule.to(given.device)
    states = [
        schedule.alpha_y[level]
        * (schedule.alpha_bar[level] * given + schedule.sigma_bar[level] * noise.normal(given.shape[1:]))
        for level in range(schedule.num_levels)
    ]
    return lambda y, level: put_back(y, states[level], seen)


def weighed(log_density: LevelLogDensity, log_likelihood: LevelLogDensity) -> LevelLogDensity:
    """Bayes' rule: a density times the likelihood of what is known, each given y_t by its logarithm, [N]."""
    return lambda y, level: log_density(y, level) + log_likelihood(y, level)


def measured(
    schedule: NoiseSchedule, log_density: LevelLogDensity, measure: Measure, given: Tensor, std: float
) -> LevelLogDensity:
    """Log likelihood, [N] up to a constant, of measurements ``given`` [N, …] of x_0 with noise of ``std``.

    At a noisy level what is measured is the clean grid that the density expects, E[x_0 | x_t] (eq. 18 with c = 1),
    whose own uncertainty widens the noise to std^2 + sigma_bar_t^2: that of data of unit variance (Song et al., 2023).
    """
    schedule = schedule.to(given.device)

    def log_likelihood(y: Tensor, level: int) -> Tensor:
        alpha, sigma = schedule.alpha_y[level], schedule.sigma_bar[level]
        (gradient,) = torch.autograd.grad(log_density(y, level).sum(), y, create_graph=True)
        expected = (y / alpha + sigma**2 * alpha * gradient) / schedule.alpha_bar[level]
        error = (measure(expected) - given).flatten(1).square().sum(dim=1)
        return -error / (2 * (std**2 + sigma**2))

    return log_likelihood
