"""MCMC transition kernels (Langevin, MALA, HMC) and the target densities that they sample.

The step sizes that they are given are those of `cdrl.schedule.NoiseSchedule.step_size`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from cdrl.config import SamplerSettings
from cdrl.sampling.noise import ImageNoise
from cdrl.schedule import per_image

LogDensity = Callable[[Tensor], Tensor]
"""y [N, *shape] -> log density up to a constant, [N]."""
Target = Callable[[Tensor], tuple[Tensor, Tensor]]
"""y [N, *shape] -> its log density [N] and the gradient of that in y, [N, *shape]."""


def with_gradient(log_density: LogDensity) -> Target:
    """Add the gradient, by automatic differentiation, to a log density."""

    def target(y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            values = log_density(y)
            (gradient,) = torch.autograd.grad(values.sum(), y)
        return values.detach(), gradient

    return target


def recovery(target: Target, x_next: Tensor, precision: Tensor) -> Target:
    """Condition a target on x_{t+1}: add -|y - x_next|^2 precision / 2 (eq. 3).

    Args:
        precision: 1 / sigma_{t+1}^2, [] or one per image [N]; 0 gives the marginal target of the highest level.
    """

    def conditional(y: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = target(y)
        offset = y - x_next
        value = value - precision / 2 * offset.flatten(1).square().sum(dim=1)
        return value, gradient.addcmul(offset, per_image(precision, y), value=-1)

    return conditional


def tempered(target: Target, temperature: float) -> Target:
    """Divide the log density and its gradient by ``temperature``: the target becomes p^(1 / temperature).

    With step sizes multiplied by sqrt(temperature), Langevin dynamics keeps its drift and has less noise.
    """

    def colder(y: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = target(y)
        return value / temperature, gradient / temperature

    return target if temperature == 1 else colder


def restricted_to(target: Target, projection: Callable[[Tensor], Tensor]) -> Target:
    """Restrict a target to the range of a projection: evaluate it there, with the gradient along the range only.

    A kernel that accepts or rejects then judges a move by its unknown part alone. The known part is put back after
    every move anyway; if it counted, good moves would be rejected and the chain would not sample the conditional.

    Args:
        projection: affine; y [N, *shape] -> y with its known part put back, [N, *shape].
    """

    def restricted(y: Tensor) -> tuple[Tensor, Tensor]:
        place, pull_back = torch.func.vjp(projection, y)[:2]
        value, gradient = target(place)
        return value, pull_back(gradient)[0]

    return restricted


class Position:
    """State of the chains, y [N, *shape], with log density and gradient evaluated at most once, when needed.

    A kernel that accepts or rejects passes them on with the state, so that MALA costs one gradient per step, as
    Langevin does.
    """

    def __init__(self, y: Tensor, target: Target, answer: tuple[Tensor, Tensor] | None = None) -> None:
        self.y, self.target = y, target
        if answer is not None:  # what ``target`` says of y, known already
            self._answer = answer

    @cached_property
    def _answer(self) -> tuple[Tensor, Tensor]:
        return self.target(self.y)

    @property
    def log_density(self) -> Tensor:
        """log p(y) up to a constant, [N]."""
        return self._answer[0]

    @property
    def gradient(self) -> Tensor:
        """Gradient of log p at y, [N, *shape]."""
        return self._answer[1]

    def moved(self, y: Tensor) -> Position:
        """The chains moved to ``y``; this same object if ``y`` is its own tensor."""
        return self if y is self.y else Position(y, self.target)

    def where(self, chosen: Tensor, other: Position) -> Position:
        """Take this position for the images that are ``chosen`` (bool [N]), and ``other`` for the rest."""
        pick = per_image(chosen, self.y)
        answer = (
            torch.where(chosen, self.log_density, other.log_density),
            torch.where(pick, self.gradient, other.gradient),
        )
        return Position(torch.where(pick, self.y, other.y), self.target, answer)


Kernel = Callable[[Position, Tensor, ImageNoise], Position]
"""(position, step size s ([] or one per image [N]), noise) -> the position one step later."""


def langevin(position: Position, step_size: Tensor, noise: ImageNoise) -> Position:
    """One unadjusted Langevin step: y + s^2 / 2 grad log p(y) + s noise (eq. 5)."""
    y = position.y
    s = per_image(step_size, y)
    return position.moved(y + s**2 / 2 * position.gradient + s * noise.normal(y.shape[1:]))


def mala(position: Position, step_size: Tensor, noise: ImageNoise) -> Position:
    """One Metropolis-adjusted Langevin step, accepted image by image; leaves p invariant (Roberts & Tweedie, 1996)."""
    proposed = langevin(position, step_size, noise)
    return metropolis(position, proposed, langevin_log_ratio(position, proposed, step_size), noise)


def hmc(leapfrog_steps: int) -> Kernel:
    """Hamiltonian Monte Carlo with unit masses and fresh momentum at each step (Neal, 2011).

    A step costs ``leapfrog_steps`` gradients; with one it is `mala`, draw for draw.
    """

    def kernel(position: Position, step_size: Tensor, noise: ImageNoise) -> Position:
        s = per_image(step_size, position.y)
        start = noise.normal(position.y.shape[1:])
        proposed, momentum = position, start
        for _ in range(leapfrog_steps):
            momentum = momentum + s / 2 * proposed.gradient
            proposed = proposed.moved(proposed.y + s * momentum)
            momentum = momentum + s / 2 * proposed.gradient
        kinetic = (momentum.square() - start.square()).flatten(1).sum(dim=1) / 2
        return metropolis(position, proposed, proposed.log_density - position.log_density - kinetic, noise)

    return kernel


def langevin_log_ratio(start: Position, end: Position, step_size: Tensor) -> Tensor:
    """Metropolis-Hastings log acceptance ratio, [N], of Langevin moves from ``start`` to ``end``.

    log p(y') q(y | y') / (p(y) q(y' | y)) with q(y' | y) = N(y + s^2 / 2 grad log p(y), s^2 I). The squares of both
    proposals are expanded, since subtracting the large squares themselves would lose the small difference.
    """
    moved, difference = end.y - start.y, end.gradient - start.gradient
    along = (moved * (start.gradient + end.gradient)).flatten(1).sum(dim=1) / 2
    steeper = (difference * (start.gradient + end.gradient)).flatten(1).sum(dim=1)
    return end.log_density - start.log_density - along - step_size**2 / 8 * steeper


def metropolis(current: Position, proposed: Position, log_ratio: Tensor, noise: ImageNoise) -> Position:
    """Accept the proposed position with probability min(1, exp(log_ratio [N])), image by image.

    A position with a non-finite value, log density or gradient is never accepted.
    """
    finite = torch.isfinite(proposed.log_density)
    for grid in (proposed.y, proposed.gradient):
        finite = finite & torch.isfinite(grid).flatten(1).all(dim=1)
    return proposed.where(finite & (noise.uniform().log() < log_ratio), current)


def make_langevin(settings: SamplerSettings) -> Kernel:
    """`langevin`, as ``sampling.kernel`` names it."""
    return langevin


def make_mala(settings: SamplerSettings) -> Kernel:
    """`mala`, as ``sampling.kernel`` names it."""
    return mala


def make_hmc(settings: SamplerSettings) -> Kernel:
    """`hmc` with the settings' number of leapfrog steps."""
    return hmc(settings.leapfrog_steps)
