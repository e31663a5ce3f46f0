"""Densities whose normalizers are known, in the place of a model's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from cdrl.config import ScheduleConfig
from cdrl.schedule import NoiseSchedule
from pipelines.likelihood.annealing import Spread

LOG_TAU = math.log(2 * math.pi)
_WIDE = 64


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians with diagonal covariances as clean data, noised at every level.

    Means and variances are [K, D], weights [K].

    In the place of a CDRL: ``conditioned(labels).log_density(y, level)`` is what log Z_t + the exact log density is,
    with log Z_t = ``log_z(level)``. A class c, if asked for, has c more.
    """

    means: Tensor
    variances: Tensor
    weights: Tensor
    schedule: NoiseSchedule

    @classmethod
    def random(cls, dimension: int, components: int, num_levels: int = 6, *, alike: bool = False) -> Mixture:
        """Components as far from one another as they are wide: up to 0.5 in 64 directions, 0.05 in all others.

        Args:
            alike: all have the same covariance.
        """
        generator = torch.Generator().manual_seed(dimension + components)
        widths = torch.full((dimension,), 0.05)
        widths[:_WIDE] = torch.linspace(0.05, 0.5, min(dimension, _WIDE))
        means = torch.randn(components, dimension, generator=generator) * widths
        variances = widths.square().expand(components, dimension)
        variances = variances * (1 + torch.rand(1 if alike else components, 1, generator=generator))
        weights = 1 + torch.rand(components, generator=generator)
        config = ScheduleConfig(num_levels=num_levels, logsnr_max=6.0, logsnr_min=-5.1)
        return cls(means, variances, weights / weights.sum(), NoiseSchedule.from_config(config))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    def log_z(self, level: int) -> float:
        """Of the unnormalized density of y_t."""
        return 3.0 + level + self.means.shape[1] * 0.7

    def conditioned(self, label: Tensor) -> SimpleNamespace:
        extra = label.clamp(min=0).float()
        return SimpleNamespace(log_density=lambda y, level: self.exact(y, level) + self.log_z(level) + extra)

    def exact(self, y: Tensor, level: int) -> Tensor:
        """Normalized log density of y_t, [N] from [N, D]."""
        scale, signal, noise = (
            float(table[level]) for table in (self.schedule.alpha_y, self.schedule.alpha_bar, self.schedule.sigma_bar)
        )
        variances = scale**2 * (signal**2 * self.variances + noise**2)
        offset = (y[:, None] - scale * signal * self.means).square() / variances
        parts = -(offset + variances.log() + LOG_TAU).sum(dim=2) / 2
        return torch.logsumexp(parts + self.weights.log(), dim=1)

    def sample(self, count: int, level: int, seed: int = 0) -> Tensor:
        """Exact samples of y_t, [count, D]."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        clean = self.means[which] + self.variances[which].sqrt() * torch.randn(count, *self.shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        x = self.schedule.alpha_bar[level] * clean + self.schedule.sigma_bar[level] * noise
        return self.schedule.alpha_y[level] * x

    def spread(self) -> Spread:
        """That of clean data: the wide directions, and one number for all others."""
        mean = (self.weights[:, None] * self.means).sum(dim=0)
        variances = (self.weights[:, None] * (self.variances + self.means**2)).sum(dim=0) - mean**2
        rest = float(variances[_WIDE:].mean()) if len(mean) > _WIDE else 0.0
        return Spread(torch.eye(len(mean), min(len(mean), _WIDE)), variances[:_WIDE], rest)
