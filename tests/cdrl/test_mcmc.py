"""Langevin's kernel and its targets against Gaussians, for which everything is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from cdrl.mcmc import langevin, recovery, with_gradient


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(mean: float, variance: float) -> Normal:
    return Normal(torch.tensor(mean), torch.tensor(variance).sqrt())


@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_the_stationary_moments_are_those_of_unadjusted_langevin(share: float) -> None:
    """For N(mu, v) the chain's variance is v / (1 - s^2 / (4 v)): the bias is known, and must be there."""
    mean, variance, count = 1.5, 0.3, 20_000
    step_size = torch.tensor(share * variance).sqrt()
    target = with_gradient(lambda y: -((y - mean) ** 2).sum(dim=1) / (2 * variance))
    y, generator = torch.zeros(count, 1), torch.Generator().manual_seed(0)
    for _ in range(round(12 / share)):
        y = langevin(y, target, step_size, torch.randn(y.shape, generator=generator))
    stationary = variance / (1 - share / 4)
    assert y.mean().item() == pytest.approx(mean, abs=4 * (stationary / count) ** 0.5)
    assert y.var().item() == pytest.approx(stationary, rel=4 * (2 / count) ** 0.5)


def test_one_langevin_step_is_equation_5_with_a_step_size_an_image() -> None:
    y, noise, step_size = draws(3, 2, 4, 4), draws(3, 2, 4, 4, seed=1), torch.tensor([0.1, 0.2, 0.5])
    moved = langevin(y, with_gradient(lambda g: -g.flatten(1).pow(4).sum(dim=1)), step_size, noise)
    for i, s in enumerate(step_size.tolist()):
        torch.testing.assert_close(moved[i], y[i] + s**2 / 2 * (-4 * y[i] ** 3) + s * noise[i])


def test_a_step_without_noise_climbs_the_density() -> None:
    target = with_gradient(lambda y: gaussian(2.0, 1.0).log_prob(y).sum(dim=1))
    y = draws(8, 3)
    moved = langevin(y, target, torch.tensor(0.3), torch.zeros(8, 3))
    assert (target(moved)[0] > target(y)[0]).all()


def test_the_recovery_target_is_the_conditional_density() -> None:
    """log p(y) + log N(x_next; y, sigma^2), up to a constant, with the gradient that goes with it."""
    marginal, sigma, constant = gaussian(0.5, 2.0), torch.tensor([0.3, 0.8, 2.0]), Normal(0.0, 1.0).log_prob
    x_next, y = draws(3, 5, seed=1), draws(3, 5).requires_grad_()
    target = recovery(with_gradient(lambda g: marginal.log_prob(g).sum(dim=1)), x_next, sigma**-2)
    value, gradient = target(y)

    def log_joint(grid: Tensor) -> Tensor:
        noise = Normal(grid, sigma[:, None])
        return (marginal.log_prob(grid) + noise.log_prob(x_next)).sum(dim=1)

    normalizer = (constant(torch.zeros(5)).sum() - 5 * sigma.log()).detach()
    torch.testing.assert_close(value + normalizer, log_joint(y).detach())
    (expected,) = torch.autograd.grad(log_joint(y).sum(), y)
    torch.testing.assert_close(gradient, expected)


def test_precision_zero_leaves_the_marginal() -> None:
    marginal = with_gradient(lambda g: -g.flatten(1).pow(2).sum(dim=1))
    y, x_next = draws(3, 1, 4, 4), 100 * draws(3, 1, 4, 4, seed=1)
    for precision in (torch.tensor(0.0), torch.zeros(3)):
        for ours, expected in zip(recovery(marginal, x_next, precision)(y), marginal(y), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_targets_leave_no_graph_and_work_where_gradients_are_off() -> None:
    with torch.no_grad():
        value, gradient = with_gradient(lambda y: -y.pow(2).sum(dim=1))(draws(2, 3))
    assert not value.requires_grad
    assert not gradient.requires_grad
    torch.testing.assert_close(gradient, -2 * draws(2, 3))
