"""Data for which the density of every level is known: a Gaussian of full covariance; and noise for many chains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from cdrl.model import log_density
from cdrl.sampling.noise import ImageNoise
from cdrl.schedule import NoiseSchedule


class ManyChains(ImageNoise):
    """The draws of all images from one generator: tens of thousands of chains need no streams of their own."""

    def __init__(self, count: int, seed: int = 0) -> None:
        super().__init__([])
        self._count, self._generator = count, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self._count

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(self._count, *shape, generator=self._generator)

    def uniform(self) -> Tensor:
        return torch.rand(self._count, generator=self._generator)

    def integers(self, high: int) -> Tensor:
        return torch.randint(high, (self._count,), generator=self._generator)


class GaussianData:
    """Levels of data N(mean, covariance): their exact densities and conditionals, for points [N, D]."""

    def __init__(self, schedule: NoiseSchedule, mean: Tensor, covariance: Tensor) -> None:
        self.schedule, self.mean, self.covariance = schedule, mean, covariance
        self._marginals = [self._marginal(level) for level in range(schedule.num_levels)]

    def marginal(self, level: int) -> MultivariateNormal:
        """p(y_t): y_t = alpha_y (alpha_bar x_0 + sigma_bar eps)."""
        return self._marginals[level]

    def _marginal(self, level: int) -> MultivariateNormal:
        schedule = self.schedule
        alpha, share, noise = schedule.alpha_y[level], schedule.alpha_bar[level], schedule.sigma_bar[level]
        spread = share**2 * self.covariance + noise**2 * torch.eye(len(self.mean))
        return MultivariateNormal(alpha * share * self.mean, alpha**2 * spread)

    def conditional(self, x_next: Tensor, level: int) -> MultivariateNormal:
        """p(y_t | x_{t+1}) of each x_next [N, D], by Bayes' rule; the marginal at the highest level."""
        marginal, precision = self.marginal(level), self.schedule.precision[level]
        covariance = torch.linalg.inv(marginal.precision_matrix + precision * torch.eye(len(self.mean)))
        pull = marginal.precision_matrix @ marginal.mean + precision * x_next
        return MultivariateNormal(pull @ covariance, covariance)

    def f_hat(self, y: Tensor, level: int) -> Tensor:
        """What a perfect network would answer, up to a constant, whatever the schedule's reference measure: [N]."""
        marginal = self.marginal(level)
        offset = y - marginal.mean
        value = -((offset @ marginal.precision_matrix) * offset).sum(dim=1) / 2
        if self.schedule.gaussian_reference:
            value = value + y.square().sum(dim=1) / (2 * self.schedule.alpha_y[level] ** 2)
        return value * self.schedule.step_size[level] ** 2

    def log_density(self, y: Tensor, level: int) -> Tensor:
        """The package's log density of `f_hat`."""
        return log_density(self.f_hat(y, level), y, self.schedule, level)


def assert_moments(points: Tensor, mean: Tensor, covariance: Tensor, slack: float = 0.0) -> None:
    """Mean and covariance of points [N, D], within 4.5 standard errors of a Gaussian's and a share of the variance."""
    variance = covariance.diagonal()
    error = 4.5 * (variance / len(points)).sqrt() + slack * variance.sqrt()
    assert ((points.mean(dim=0) - mean).abs() <= error).all(), (points.mean(dim=0), mean)
    pairs = variance.outer(variance)
    error = 4.5 * ((pairs + covariance**2) / len(points)).sqrt() + slack * pairs.sqrt()
    assert ((points.T.cov() - covariance).abs() <= error).all(), (points.T.cov(), covariance)


def covariance_of(*standard_deviations: float, angle: float = 0.6) -> Tensor:
    """A full covariance with these deviations along axes that are turned by ``angle`` in every plane."""
    size = len(standard_deviations)
    axes = torch.eye(size)
    for i in range(size):
        for j in range(i + 1, size):
            turn = torch.eye(size)
            turn[i, i] = turn[j, j] = math.cos(angle)
            turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
            axes = axes @ turn
    return axes @ torch.tensor(standard_deviations).square().diag() @ axes.T
