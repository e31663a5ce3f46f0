"""Conditioning on the known part of images: put back by a projection, or weighted by a likelihood."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cdrl.arguments import shown, whole_number
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import Constrain, LevelLogDensity
from cdrl.schedule import NoiseSchedule

Seen = Callable[[Tensor], Tensor]
"""Grids [N, *shape] -> their observed part: an orthogonal projection."""
Measure = Callable[[Tensor], Tensor]
"""Clean grids [N, *shape] -> a measurement of each, [N, …], differentiable."""


def cells(known: Tensor) -> Seen:
    """Observe the values where ``known`` is true, a bool that broadcasts over grids. Raises TypeError for another."""
    if not isinstance(known, Tensor) or known.dtype != torch.bool:
        raise TypeError(f"known: expected a bool tensor, true where a value is known, found {shown(known)}")
    return lambda grids: torch.where(known.to(grids.device), grids, 0.0)


def block_means(factor: int) -> Seen:
    """Observe the mean of each block of factor x factor pixels.

    It raises ValueError for images into which the blocks do not fit exactly.
    """
    factor = whole_number("factor", factor, least=1)

    def means(grids: Tensor) -> Tensor:
        height, width = grids.shape[-2:]
        if height % factor or width % factor:
            raise ValueError(f"factor: expected one that divides images of {height}x{width} exactly, found {factor}")
        return enlarged(F.avg_pool2d(grids, factor), factor)

    return means


def enlarged(images: Tensor, factor: int) -> Tensor:
    """Repeat each pixel of images [N, C, H, W] as a block: [N, C, factor H, factor W]."""
    return images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def put_back(grids: Tensor, given: Tensor, seen: Seen) -> Tensor:
    """Replace the observed part of ``grids`` by that of ``given``, both [N, *shape]."""
    return grids + seen(given - grids)


def reset_to(schedule: NoiseSchedule, given: Tensor, seen: Seen, noise: ImageNoise) -> Constrain:
    """The constraint that puts back the observed part of ``given``, at the noise of each level (Appendix C).

    It is y_t = alpha_y_t (alpha_bar_t x_0 + sigma_bar_t eps) with one draw of eps for each level, so that all moves and
    visits of a level have the same target; a fresh draw for each move would change it at every step. The quadratic term
    stays as it is: it is a sum over pixels, constant in those that are put back.

    Args:
        given: clean grids [N, *shape]; their unobserved part has no effect.
    """
    schedule = schedule.to(given.device)
    states = [
        schedule.alpha_y[level]
        * (schedule.alpha_bar[level] * given + schedule.sigma_bar[level] * noise.normal(given.shape[1:]))
        for level in range(schedule.num_levels)
    ]
    return lambda y, level: put_back(y, states[level], seen)


def times_likelihood(log_density: LevelLogDensity, log_likelihood: LevelLogDensity) -> LevelLogDensity:
    """Bayes' rule in logarithms: log density plus log likelihood of the measurement, [N]."""
    return lambda y, level: log_density(y, level) + log_likelihood(y, level)


def measurement_likelihood(
    schedule: NoiseSchedule, log_density: LevelLogDensity, measure: Measure, given: Tensor, std: float
) -> LevelLogDensity:
    """Log likelihood, [N] up to a constant, of measurements ``given`` [N, …] of x_0 with noise of ``std``.

    At a noisy level the measurement is taken of the denoised grid E[x_0 | x_t] (eq. 18 with c = 1). Its uncertainty
    widens the variance to std^2 + sigma_bar_t^2, which is right for data of unit variance (Song et al., 2023).
    """
    schedule = schedule.to(given.device)

    def log_likelihood(y: Tensor, level: int) -> Tensor:
        alpha, sigma = schedule.alpha_y[level], schedule.sigma_bar[level]
        (gradient,) = torch.autograd.grad(log_density(y, level).sum(), y, create_graph=True)
        expected = (y / alpha + sigma**2 * alpha * gradient) / schedule.alpha_bar[level]
        error = (measure(expected) - given).flatten(1).square().sum(dim=1)
        return -error / (2 * (std**2 + sigma**2))

    return log_likelihood
