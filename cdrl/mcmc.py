"""Transition kernels: one step in, one step out. A target gives log densities and their gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cdrl.schedule import per_image

LogDensity = Callable[[Tensor], Tensor]
"""y [N, *shape] -> log density up to a constant, [N]."""
Target = Callable[[Tensor], tuple[Tensor, Tensor]]
"""y [N, *shape] -> its log density [N] and the gradient of it [N, *shape]."""


def with_gradient(log_density: LogDensity) -> Target:
    """The target of a differentiable log density."""

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
        precision: 1 / sigma_{t+1}^2, [] or one an image [N]; 0 leaves the marginal target of the highest level.
    """

    def conditional(y: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = target(y)
        offset = y - x_next
        value = value - precision / 2 * offset.flatten(1).square().sum(dim=1)
        return value, gradient.addcmul(offset, per_image(precision, y), value=-1)

    return conditional


def langevin(y: Tensor, target: Target, step_size: Tensor, noise: Tensor) -> Tensor:
    """One unadjusted Langevin step: y + s^2 / 2 grad log p(y) + s noise (eq. 5).

    Args:
        y: [N, *shape].
        step_size: s, [] or one an image [N].
        noise: standard normal, [N, *shape].
    """
    s = per_image(step_size, y)
    _, gradient = target(y)
    return y + s**2 / 2 * gradient + s * noise
