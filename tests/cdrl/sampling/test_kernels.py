"""Kernels and their targets against Gaussians, for which everything is known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from cdrl.config import SamplerSettings
from cdrl.sampling.kernels import (
    Kernel,
    Position,
    Target,
    hmc,
    langevin,
    langevin_log_ratio,
    mala,
    metropolis,
    recovery,
    tempered,
    with_gradient,
)
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import refine
from cdrl.sampling.settings import changed, plan_chains
from tests.cdrl.exact import ManyChains


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(mean: float, variance: float) -> Normal:
    return Normal(torch.tensor(mean), torch.tensor(variance).sqrt())


class GivenNoise(ImageNoise):
    """Serves one normal draw, [N, *shape], and one uniform draw."""

    def __init__(self, normal: Tensor, uniform: float = 0.5) -> None:
        super().__init__([])
        self._normal, self._uniform = normal, torch.full((len(normal),), uniform)

    def normal(self, shape: Sequence[int]) -> Tensor:
        assert tuple(shape) == tuple(self._normal.shape[1:])
        return self._normal

    def uniform(self) -> Tensor:
        return self._uniform


class Counted:
    """A target that counts how often each image was evaluated."""

    def __init__(self, target: Target) -> None:
        self.target, self.calls = target, 0

    def __call__(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.target(y)


def rough(y: Tensor) -> Tensor:
    """A log density that is no Gaussian's."""
    return -(y.flatten(1).pow(4) / 4 + torch.cos(2 * y.flatten(1))).sum(dim=1)


@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_the_stationary_moments_are_those_of_unadjusted_langevin(share: float) -> None:
    """For N(mu, v) the chain's variance is v / (1 - s^2 / (4 v)): the bias is known, and must be there."""
    mean, variance, count = 1.5, 0.3, 20_000
    step_size = torch.tensor(share * variance).sqrt()
    target = with_gradient(lambda y: -((y - mean) ** 2).sum(dim=1) / (2 * variance))
    position = Position(torch.zeros(count, 1), target)
    y = refine(position, step_size, ManyChains(count), round(12 / share)).y
    stationary = variance / (1 - share / 4)
    assert y.mean().item() == pytest.approx(mean, abs=4 * (stationary / count) ** 0.5)
    assert y.var().item() == pytest.approx(stationary, rel=4 * (2 / count) ** 0.5)


def test_one_langevin_step_is_equation_5_with_a_step_size_an_image() -> None:
    y, noise, step_size = draws(3, 2, 4, 4), draws(3, 2, 4, 4, seed=1), torch.tensor([0.1, 0.2, 0.5])
    position = Position(y, with_gradient(lambda g: -g.flatten(1).pow(4).sum(dim=1)))
    moved = langevin(position, step_size, GivenNoise(noise)).y
    for i, s in enumerate(step_size.tolist()):
        torch.testing.assert_close(moved[i], y[i] + s**2 / 2 * (-4 * y[i] ** 3) + s * noise[i])


def test_a_step_without_noise_climbs_the_density() -> None:
    target = with_gradient(lambda y: gaussian(2.0, 1.0).log_prob(y).sum(dim=1))
    position = Position(draws(8, 3), target)
    moved = langevin(position, torch.tensor(0.3), GivenNoise(torch.zeros(8, 3)))
    assert (moved.log_density > position.log_density).all()


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


@pytest.mark.parametrize("kernel", [mala, hmc(3)])
def test_at_a_temperature_the_variance_is_that_of_the_density_to_its_power(kernel: Kernel) -> None:
    """N(mu, v)^(1 / T) is N(mu, T v) but for its normalizer."""
    temperature, variance, count = 0.4, 0.5, 8000
    target = tempered(with_gradient(lambda y: gaussian(1.5, variance).log_prob(y).sum(dim=1)), temperature)
    y = refine(Position(torch.zeros(count, 1), target), torch.tensor(0.25), ManyChains(count), 60, kernel).y
    assert y.mean().item() == pytest.approx(1.5, abs=4 * (temperature * variance / count) ** 0.5)
    assert y.var().item() == pytest.approx(temperature * variance, rel=4 * (2 / count) ** 0.5)


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


def test_the_langevin_ratio_is_metropolis_and_hastings() -> None:
    """log p(y') + log q(y | y') - log p(y) - log q(y' | y), each proposal as torch's Gaussian."""
    step_size, target = torch.tensor([0.2, 0.5, 0.9]), with_gradient(rough)
    start = Position(draws(3, 4, 2), target)
    end = langevin(start, step_size, GivenNoise(draws(3, 4, 2, seed=1)))

    def log_q(to: Position, of: Position) -> Tensor:
        s = step_size[:, None, None]
        return Normal(of.y + s**2 / 2 * of.gradient, s).log_prob(to.y).sum(dim=(1, 2))

    expected = end.log_density + log_q(start, end) - start.log_density - log_q(end, start)
    torch.testing.assert_close(langevin_log_ratio(start, end, step_size), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(langevin_log_ratio(end, start, step_size), -expected, rtol=1e-4, atol=1e-4)


def test_one_leapfrog_step_is_mala_draw_for_draw() -> None:
    start, step_size = Position(draws(400, 3), with_gradient(rough)), torch.tensor(0.6)
    ours, theirs = (kernel(start, step_size, ManyChains(400)).y for kernel in (mala, hmc(1)))
    torch.testing.assert_close(ours, theirs)
    stayed = (ours == start.y).all(dim=1)
    assert 0.1 < stayed.float().mean() < 0.9


def test_a_fine_trajectory_follows_newtons_law_and_keeps_its_energy() -> None:
    """y(T) = y + T p + T^2 / 2 grad log p(y) + O(T^3); with u close to 1 a lost energy would be a rejection."""
    start, momentum = Position(draws(50, 3), with_gradient(rough)), draws(50, 3, seed=1)
    there = hmc(5)(start, torch.tensor(0.01), GivenNoise(momentum, uniform=0.999))
    expected = start.y + 0.05 * momentum + 0.05**2 / 2 * start.gradient
    torch.testing.assert_close(there.y, expected, rtol=0, atol=2e-3)
    assert ((there.y - start.y).abs().amax(dim=1) > 0.005).all()


@pytest.mark.parametrize("kernel", [mala, hmc(2)])
def test_an_image_takes_or_leaves_its_move_whatever_the_others_do(kernel: Kernel) -> None:
    step_size, target = torch.tensor(0.8), with_gradient(rough)
    start = draws(32, 3)
    together = kernel(Position(start, target), step_size, ImageNoise(range(32)))
    stayed = (together.y == start).all(dim=1)
    assert 0 < stayed.sum() < 32
    for i in range(32):
        alone = kernel(Position(start[i : i + 1], target), step_size, ImageNoise([i]))
        torch.testing.assert_close(together.y[i], alone.y[0])
        assert stayed[i] == (alone.y[0] == start[i]).all()


def test_metropolis_compares_a_uniform_draw_with_the_ratio() -> None:
    target = with_gradient(rough)
    here, there = Position(torch.zeros(4, 2), target), Position(torch.ones(4, 2), target)
    log_ratio = torch.tensor([0.2, 0.5, 0.8, 3.0]).log()
    chosen = metropolis(here, there, log_ratio, GivenNoise(torch.zeros(4, 2), uniform=0.6))
    assert chosen.y[:, 0].tolist() == [0, 0, 1, 1]
    for ours, expected in ((chosen.log_density, target(chosen.y)[0]), (chosen.gradient, target(chosen.y)[1])):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("what", ["value", "gradient"])
@pytest.mark.parametrize("kernel", [mala, hmc(2)])
def test_a_place_that_is_not_finite_is_never_taken(kernel: Kernel, what: str, broken: float) -> None:
    def target(y: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = -y.square().sum(dim=1) / 2, -y
        moved = (y[:, 0] != 0) & (torch.arange(len(y)) % 2 == 0)
        if what == "value":
            return torch.where(moved, broken, value), gradient
        return value, torch.where(moved[:, None], broken, gradient)

    count = 40
    chosen = kernel(Position(torch.zeros(count, 3), target), torch.tensor(0.1), ManyChains(count))
    assert (chosen.y[::2] == 0).all()
    assert (chosen.y[1::2] != 0).any(dim=1).float().mean() > 0.9
    assert torch.isfinite(chosen.y).all()
    assert torch.isfinite(chosen.gradient).all()


@pytest.mark.parametrize(("kernel", "expected"), [(langevin, 7), (mala, 8), (hmc(3), 22)])
def test_a_chain_of_7_steps_costs_no_more_gradients_than_it_must(kernel: Kernel, expected: int) -> None:
    """Langevin one a step; MALA one a step and one where it starts; HMC three a step and one where it starts."""
    target = Counted(with_gradient(rough))
    refine(Position(draws(5, 3), target), torch.tensor(0.3), ManyChains(5), 7, kernel)
    assert target.calls == expected


def test_a_position_asks_once_and_not_before_it_must() -> None:
    target = Counted(with_gradient(rough))
    position = Position(draws(2, 3), target)
    assert target.calls == 0
    torch.testing.assert_close(position.log_density, rough(position.y))
    assert position.gradient is position.gradient
    assert target.calls == 1


@pytest.mark.parametrize("kernel", [langevin, mala, hmc(2)])
def test_a_place_to_which_chains_are_moved_is_evaluated_anew(kernel: Kernel) -> None:
    """The chain goes on as one that starts there, not with the answer of where it was."""
    target, step_size = with_gradient(rough), torch.tensor(0.5)
    start, noise = Position(draws(60, 3), target), ManyChains(60)
    first = kernel(start, step_size, noise)
    assert first.moved(first.y) is first
    place = torch.cat([torch.full_like(first.y[:, :1], 1.5), first.y[:, 1:]], dim=1)
    again = ManyChains(60)
    kernel(start, step_size, again)
    ours, expected = kernel(first.moved(place), step_size, noise), kernel(Position(place, target), step_size, again)
    assert torch.equal(ours.y, expected.y)
    assert torch.equal(ours.log_density, target(ours.y)[0])


def test_kernels_have_names() -> None:
    assert plan_chains(SamplerSettings(kernel="langevin"), 3, 2).kernel is langevin
    assert plan_chains(SamplerSettings(kernel="mala"), 3, 2).kernel is mala
    hmc_of_4 = plan_chains(SamplerSettings(kernel="hmc", leapfrog_steps=4), 3, 2).kernel
    target = Counted(with_gradient(rough))
    hmc_of_4(Position(draws(2, 3), target), torch.tensor(0.1), ManyChains(2))
    assert target.calls == 5
    with pytest.raises(ValueError, match="kernel: unknown 'gibbs'; expected one of langevin, mala, hmc"):
        changed(SamplerSettings(), {"kernel": "gibbs"})
