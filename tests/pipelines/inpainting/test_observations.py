"""Conditional sampling where the truth is a Gaussian's conditional distribution in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from cdrl.config import ScheduleConfig
from cdrl.sampling.kernels import Kernel, hmc, langevin, mala, restricted_to, with_gradient
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import sample
from cdrl.schedule import NoiseSchedule
from pipelines.inpainting.observations import (
    Seen,
    block_means,
    cells,
    enlarged,
    measurement_likelihood,
    put_back,
    reset_to,
    times_likelihood,
)
from tests.cdrl.exact import GaussianData, ManyChains, assert_moments, covariance_of
from tests.helpers import chain_plan

SHAPE = (1, 2, 2)
MEAN = torch.tensor([0.4, -0.7, 0.2, 0.1])
COVARIANCE = covariance_of(0.9, 0.7, 0.5, 0.3)
TRUTH = torch.tensor([1.2, -1.4, 0.9, 1.1])
KNOWN = torch.tensor([[[True, False], [False, True]]])
SEEN: dict[str, Seen] = {"pixels": cells(KNOWN), "mean": block_means(2)}
KERNELS: dict[str, Kernel] = {"langevin": langevin, "mala": mala, "hmc": hmc(2)}


class GaussianImages(GaussianData):
    """Images of 2x2 pixels."""

    def __init__(self, coefficient: float) -> None:
        config = ScheduleConfig(num_levels=3, step_coefficient=coefficient, step_scaling="constant")
        super().__init__(NoiseSchedule.from_config(config), MEAN, COVARIANCE)

    def log_density(self, y: Tensor, level: int) -> Tensor:
        return super().log_density(y.flatten(1), level)

    def propose(self, x_next: Tensor, level: int) -> Tensor:
        """Of a perfect initializer, which knows nothing of what is known."""
        return self.conditional(x_next.flatten(1), level).mean.expand(len(x_next), 4).view_as(x_next)


def matrix_of(seen: Seen) -> Tensor:
    """The projection as a matrix on flattened images, [4, 4]."""
    return seen(torch.eye(4).view(4, *SHAPE)).flatten(1)


def conditional(projection: Tensor, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the Gaussian given what a projection sees of TRUTH, by the rule of Gaussians."""
    spread = projection @ COVARIANCE @ projection + noise**2 * torch.eye(4)
    gain = COVARIANCE @ projection @ torch.linalg.pinv(spread, rtol=1e-4)
    return MEAN + gain @ projection @ (TRUTH - MEAN), COVARIANCE - gain @ projection @ COVARIANCE


def drawn(data: GaussianImages, seen: Seen, passes: int, steps: int, kernel: Kernel, count: int = 1500) -> Tensor:
    noise = ManyChains(count)
    given = TRUTH.view(1, *SHAPE).expand(count, *SHAPE)
    constrain = reset_to(data.schedule, given, seen, noise)
    images = sample(
        data.schedule,
        data.propose,
        data.log_density,
        noise,
        SHAPE,
        chain_plan(data.schedule, steps=steps, denoise=0.0, kernel=kernel, passes=passes),
        constrain=constrain,
    )
    return put_back(images, given, seen).flatten(1)


@pytest.mark.parametrize("name", SEEN)
def test_what_is_seen_is_an_orthogonal_projection_and_what_is_put_back_is_seen(name: str) -> None:
    seen = SEEN[name]
    projection = matrix_of(seen)
    torch.testing.assert_close(projection, projection.T)
    torch.testing.assert_close(projection @ projection, projection)
    grids, given = torch.randn(2, 5, *SHAPE, generator=torch.Generator().manual_seed(0))
    back = put_back(grids, given, seen)
    torch.testing.assert_close(seen(back), seen(given))
    torch.testing.assert_close(back - seen(back), grids - seen(grids))


def test_block_means_are_those_of_blocks() -> None:
    images = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    seen = block_means(2)(images)
    for row, column in ((0, 0), (2, 4), (1, 3)):
        top, left = row // 2 * 2, column // 2 * 2
        expected = images[0, :, top : top + 2, left : left + 2].mean(dim=(1, 2))
        torch.testing.assert_close(seen[0, :, row, column], expected)
    assert torch.equal(enlarged(seen[..., ::2, ::2], 2), seen)


def test_what_is_put_back_has_the_moments_of_the_given_image_at_every_level() -> None:
    """q(x_t | x_0) times alpha_y, which is 1 at the highest level; draws of two levels have nothing in common."""
    schedule, count = NoiseSchedule.from_config(ScheduleConfig(num_levels=3)), 20_000
    given = torch.full((count, *SHAPE), 0.8)
    constrain = reset_to(schedule, given, cells(KNOWN), ManyChains(count))
    free = torch.full_like(given, 7.0)
    errors = []
    for level in range(3):
        y = constrain(free, level)
        assert torch.equal(y, constrain(free, level))
        assert (y[:, ~KNOWN] == 7.0).all()
        x = y[:, KNOWN] / (1.0 if level == 2 else schedule.alpha_step[level])
        mean, std = schedule.alpha_bar[level] * 0.8, schedule.sigma_bar[level]
        assert_moments(x, mean.expand(2), std**2 * torch.eye(2))
        errors.append((x - mean) / std)
    assert (errors[0] * errors[1]).mean().abs() < 4.5 / (2 * count) ** 0.5


def test_a_target_within_has_the_value_on_the_way_and_no_slope_across() -> None:
    data = GaussianImages(0.1)
    given, y = torch.randn(2, 5, *SHAPE, generator=torch.Generator().manual_seed(0))
    target = with_gradient(lambda y: data.log_density(y, 1))
    for seen in SEEN.values():
        with torch.no_grad():
            value, gradient = restricted_to(target, lambda y, seen=seen: put_back(y, given, seen))(y)
        place = put_back(y, given, seen)
        there, slope = target(place)
        torch.testing.assert_close(value, there)
        torch.testing.assert_close(gradient, slope - seen(slope))


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize(
    ("kernel", "coefficient", "steps", "bias"),
    [("langevin", 0.08, 60, 0.06), ("mala", 0.8, 12, 0.0), ("hmc", 0.3, 10, 0.0)],
)
def test_many_passes_give_the_conditional_gaussian(
    name: str, kernel: str, coefficient: float, steps: int, bias: float
) -> None:
    seen = SEEN[name]
    images = drawn(GaussianImages(coefficient), seen, 8, steps, KERNELS[kernel])
    mean, covariance = conditional(matrix_of(seen))
    unknown = torch.eye(4) - matrix_of(seen)
    # What is known has no variance: its noise at level 0 is all that differs.
    assert_moments(images @ unknown, unknown @ mean, unknown @ covariance @ unknown + 1e-4 * unknown, slack=bias)
    torch.testing.assert_close(images @ matrix_of(seen), (matrix_of(seen) @ TRUTH).expand_as(images))


def one_pass(data: GaussianImages, seen: Seen) -> tuple[Tensor, Tensor]:
    """Mean and covariance after endless steps at each level, once: x_t given x_{t+1} and what is put back at t alone.

    Every level is linear and Gaussian; with s the seen part and u the rest, y_u given y_s has the precision
    (L + p I)_uu and the mean that is pulled by y_s and x_{t+1, u}.
    """
    schedule = data.schedule
    see, free = torch.eye(4)[KNOWN.flatten()], torch.eye(4)[~KNOWN.flatten()]
    mean, covariance = torch.zeros(2), torch.eye(2)
    for level in reversed(range(schedule.num_levels)):
        marginal, p = data.marginal(level), schedule.precision[level]
        inverse = marginal.precision_matrix
        spread = torch.linalg.inv(free @ inverse @ free.T + p * torch.eye(2))
        pull = -spread @ free @ inverse @ see.T
        alpha = schedule.alpha_y[level]
        known = see @ (alpha * schedule.alpha_bar[level] * TRUTH - marginal.mean)
        own = free @ marginal.mean
        mean = own + spread @ (p * (mean - own)) + pull @ known
        covariance = spread + p**2 * spread @ covariance @ spread
        covariance = covariance + (alpha * schedule.sigma_bar[level]) ** 2 * pull @ pull.T
        mean, covariance = mean / alpha, covariance / alpha**2
    return mean / schedule.alpha_bar[0], covariance / schedule.alpha_bar[0] ** 2


def test_one_pass_is_short_of_the_conditional_gaussian_by_what_its_recursion_says() -> None:
    """However long the chains: x_{t+1} was drawn from a noisier view of what is known, and holds x_t back."""
    data = GaussianImages(0.8)
    mean, covariance = one_pass(data, SEEN["pixels"])
    images = drawn(data, SEEN["pixels"], 1, 25, mala)[:, ~KNOWN.flatten()]
    assert_moments(images, mean, covariance)
    exact = conditional(matrix_of(SEEN["pixels"]))[0][~KNOWN.flatten()]
    assert (mean - exact).norm() > 0.15 * (exact - MEAN[~KNOWN.flatten()]).norm()


@pytest.mark.parametrize("level", [0, 2, 3])
def test_the_likelihood_of_a_noisy_level_is_exact_for_data_of_unit_variance(level: int) -> None:
    """x_0 given x_t is N(alpha_bar x_t, sigma_bar^2 I), a measurement N(alpha_bar x_t, (sigma_bar^2 + std^2) I)."""
    schedule = NoiseSchedule.from_config(ScheduleConfig(num_levels=4))
    data = GaussianData(schedule, torch.zeros(4), torch.eye(4))
    generator = torch.Generator().manual_seed(0)
    y, given = torch.randn(2, 6, 4, generator=generator)
    likelihood = measurement_likelihood(schedule, data.log_density, lambda x: x, given[:1].expand(6, 4), 0.3)
    value, gradient = with_gradient(lambda y: likelihood(y, level))(y)

    def exact(y: Tensor) -> Tensor:
        x = y / schedule.alpha_y[level]
        spread = (0.3**2 + schedule.sigma_bar[level] ** 2).sqrt()
        return Normal(schedule.alpha_bar[level] * x, spread).log_prob(given[0]).sum(dim=1)

    theirs, their_gradient = with_gradient(exact)(y)
    torch.testing.assert_close(value - value[0], theirs - theirs[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SEEN)
def test_chains_under_a_likelihood_give_bayes_rule(name: str) -> None:
    data, seen, count, std = GaussianImages(0.5), SEEN[name], 2000, 0.4
    given = seen(TRUTH.view(1, *SHAPE)).expand(count, *SHAPE)
    log_density = times_likelihood(
        data.log_density, measurement_likelihood(data.schedule, data.log_density, seen, given, std)
    )
    images = sample(
        data.schedule,
        data.propose,
        log_density,
        ManyChains(count),
        SHAPE,
        chain_plan(data.schedule, steps=8, denoise=0.0, kernel=mala, passes=8),
    )
    assert_moments(images.flatten(1), *conditional(matrix_of(seen), std), slack=0.02)


def test_what_is_put_back_depends_on_the_images_own_seed_alone() -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig(num_levels=2))
    given = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    together = reset_to(schedule, given, cells(KNOWN), ImageNoise([5, 6, 7]))
    alone = reset_to(schedule, given[1:2], cells(KNOWN), ImageNoise([6]))
    y = torch.zeros_like(given)
    assert torch.equal(together(y, 1)[1:2], alone(y[1:2], 1))


def test_observations_that_cannot_be_are_refused() -> None:
    known: Any
    for known in (KNOWN.float(), None, 3):
        with pytest.raises(TypeError, match=r"^known: expected a bool tensor, true where a value is known, found "):
            cells(known)
    factor: Any
    for factor in (0, 2.0, True, "2"):
        with pytest.raises((TypeError, ValueError), match=r"^factor: expected a whole number of at least 1, found "):
            block_means(factor)
    with pytest.raises(ValueError, match=r"^factor: expected one that divides images of 8x6 exactly, found 4"):
        block_means(4)(torch.zeros(1, 1, 8, 6))
