"""Annealed importance sampling (Neal, 2001) in both directions, to bracket log Z in any dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl.sampling.kernels import LogDensity, with_gradient
from cdrl.schedule import per_image

_PILOT_CHAINS = 128
_ACCEPTANCE = 0.6  # near the best of MALA's, 0.574 (Roberts & Rosenthal, 1998)


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2 I), the start of the forward runs; mean is [*shape], std a number."""

    mean: Tensor
    std: float

    @classmethod
    def fitted(cls, samples: Tensor) -> Gaussian:
        """Fit mean [*shape] and one common standard deviation to samples [N, *shape]."""
        mean = samples.mean(dim=0)
        return cls(mean, float((samples - mean).square().mean().sqrt()))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw samples, [count, *shape]."""
        return self.mean + self.std * _normal((count, *self.mean.shape), self.mean.device, generator)

    def target(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized log density [N] of y [N, *shape], and its gradient [N, *shape]."""
        offset = (y - self.mean) / self.std
        constant = self.mean.numel() * math.log(self.std * math.sqrt(2 * math.pi))
        return -offset.flatten(1).square().sum(dim=1) / 2 - constant, -offset / self.std


@dataclass(frozen=True)
class Estimate:
    """Estimate of log Z in nats from one direction."""

    log_z: float
    standard_error: float
    effective_samples: float
    """Effective sample size of the importance weights, (sum w)^2 / sum w^2, at most the number of chains."""


@dataclass(frozen=True)
class Bracket:
    """Lower and upper estimate of log Z: in expectation at most and at least log Z (Jensen)."""

    lower: Estimate
    upper: Estimate


def log_normalizer(
    log_density: LogDensity,
    start: Gaussian,
    samples: Tensor,
    *,
    temperatures: int,
    generator: torch.Generator,
) -> Bracket:
    """Bracket log Z, the log of the integral of exp(log_density) over the whole space.

    The path is log pi_b = (1 - b) log N(start) + b log_density with b = (k / temperatures)^2, k = 0 … temperatures,
    with one MALA transition at each intermediate b. As many chains as there are samples run forward from draws of
    ``start`` and backward from ``samples``. A pilot run sets the step sizes beforehand, so that both directions use
    the same fixed reversible kernels and the bounds are exact.

    Args:
        log_density: y [N, *shape] -> [N], differentiable.
        samples: exact samples of exp(log_density) / Z, [N, *shape], other than those that ``start`` was fitted to;
            if they are not exact, the upper estimate is not a bound.
    """
    target = with_gradient(log_density)

    def place(y: Tensor) -> _Place:
        return _Place(y, *start.target(y), *target(y))

    betas = [(k / temperatures) ** 2 for k in range(temperatures + 1)]
    step_sizes = _pilot(place(start.sample(_PILOT_CHAINS, generator)), betas[1:-1], start.std, place, generator)
    forward = _log_weights(place(start.sample(len(samples), generator)), betas, step_sizes, place, generator)
    back = _log_weights(place(samples), betas[::-1], step_sizes[::-1], place, generator)
    upper = _estimate(back)
    return Bracket(_estimate(forward), Estimate(-upper.log_z, upper.standard_error, upper.effective_samples))


class _Place(NamedTuple):
    """State of the chains, with log density [N] and gradient [N, *shape] of both ends of the path there."""

    y: Tensor
    start: Tensor
    start_gradient: Tensor
    end: Tensor
    end_gradient: Tensor

    def at(self, beta: float) -> tuple[Tensor, Tensor]:
        """Log density [N] and gradient [N, *shape] of the path at ``beta``."""
        value = (1 - beta) * self.start + beta * self.end
        return value, (1 - beta) * self.start_gradient + beta * self.end_gradient


def _log_weights(
    chains: _Place,
    betas: list[float],
    step_sizes: list[float],
    place: Callable[[Tensor], _Place],
    generator: torch.Generator,
) -> Tensor:
    """Log importance weights, float64 [N], of chains run along ``betas`` with a transition at each inner one."""
    total = torch.zeros(len(chains.y), dtype=torch.float64, device=chains.y.device)
    for k in range(1, len(betas)):
        total += (betas[k] - betas[k - 1]) * (chains.end - chains.start).double()
        if k < len(betas) - 1:
            chains, _ = _transition(chains, betas[k], step_sizes[k - 1], place, generator)
    return total


def _pilot(
    chains: _Place,
    betas: list[float],
    step_size: float,
    place: Callable[[Tensor], _Place],
    generator: torch.Generator,
) -> list[float]:
    """Choose a step size for each of ``betas`` at which about 0.6 of the proposals are accepted."""
    step_sizes = []
    for beta in betas:
        step_sizes.append(step_size)
        chains, accepted = _transition(chains, beta, step_size, place, generator)
        step_size *= math.exp(0.5 * (float(accepted.double().mean()) - _ACCEPTANCE))
    return step_sizes


def _transition(
    chains: _Place,
    beta: float,
    step_size: float,
    place: Callable[[Tensor], _Place],
    generator: torch.Generator,
) -> tuple[_Place, Tensor]:
    """Make one MALA step at ``beta``; returns the chains and which of them moved (bool [N])."""
    value, gradient = chains.at(beta)
    noise = _normal(chains.y.shape, chains.y.device, generator)
    proposed = place(chains.y + step_size**2 / 2 * gradient + step_size * noise)
    proposed_value, proposed_gradient = proposed.at(beta)
    noise_back = (chains.y - proposed.y - step_size**2 / 2 * proposed_gradient) / step_size
    log_ratio = proposed_value - value + (noise.square() - noise_back.square()).flatten(1).sum(dim=1) / 2
    threshold = torch.rand(len(value), generator=generator).log().to(value.device)
    accepted = threshold < log_ratio
    moved = [torch.where(per_image(accepted, new), new, old) for new, old in zip(proposed, chains, strict=True)]
    return _Place(*moved), accepted


def _estimate(log_weights: Tensor) -> Estimate:
    count = len(log_weights)
    effective = float((2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp())
    return Estimate(
        log_z=float(log_weights.logsumexp(0)) - math.log(count),
        # The standard error of the log of a mean is, to first order, the relative standard error of the weights.
        standard_error=math.sqrt(max(0.0, 1 / effective - 1 / count)),
        effective_samples=effective,
    )


def _normal(shape: tuple[int, ...], device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(device)
