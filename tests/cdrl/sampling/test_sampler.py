"""Algorithm 2 where every level's density is known: Gaussian data."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cdrl.config import SamplerSettings, ScheduleConfig
from cdrl.sampling.kernels import Kernel, hmc, langevin, mala
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import denoised, sample
from cdrl.sampling.settings import plan_chains, settings_that_change_images, step_adjustment
from cdrl.schedule import NoiseSchedule
from tests.helpers import chain_plan

MEAN, VARIANCE = 0.7, 0.2
SHAPE = (1, 16, 16)


class GaussianLevels:
    """The exact log density and conditional mean of every level for data N(MEAN, VARIANCE)."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        alpha_y, alpha_bar, sigma_bar = schedule.alpha_y, schedule.alpha_bar[:-1], schedule.sigma_bar[:-1]
        self.mean = alpha_y * alpha_bar * MEAN
        self.variance = alpha_y**2 * (alpha_bar**2 * VARIANCE + sigma_bar**2)

    def log_density(self, y: Tensor, level: int) -> Tensor:
        return -((y - self.mean[level]) ** 2).flatten(1).sum(dim=1) / (2 * self.variance[level])

    def posterior_mean(self, x_next: Tensor, level: int) -> Tensor:
        precision = self.schedule.precision[level]
        return (self.mean[level] / self.variance[level] + x_next * precision) / (1 / self.variance[level] + precision)

    def identity(self, x_next: Tensor, level: int) -> Tensor:
        return x_next


def fine_schedule(coefficient: float = 0.02) -> NoiseSchedule:
    """Steps short for every level's noise: s_t^2 = coefficient sigma_{t+1}^2."""
    return NoiseSchedule.from_config(ScheduleConfig(step_coefficient=coefficient, step_scaling="constant"))


@pytest.mark.parametrize("proposal", ["posterior_mean", "identity"])
def test_exact_densities_bring_back_the_data_whatever_the_proposal(proposal: str) -> None:
    levels = GaussianLevels(fine_schedule())
    noise = ImageNoise(range(64))
    drawn = sample(
        levels.schedule,
        getattr(levels, proposal),
        levels.log_density,
        noise,
        SHAPE,
        chain_plan(levels.schedule, steps=400, denoise=0.0),
    )
    count = drawn.numel()
    assert drawn.mean().item() == pytest.approx(MEAN, abs=4 * math.sqrt(VARIANCE / count))
    # Half a per cent of it is Langevin's own bias.
    assert drawn.var().item() == pytest.approx(VARIANCE, rel=4 * math.sqrt(2 / count) + 0.01)


@pytest.mark.parametrize(
    ("steps", "scale", "temperature"), [([3] * 6, 1.3, 1.0), ([4, 0, 1, 3, 2, 5], 0.8, 1.0), ([3] * 6, 1.3, 0.5)]
)
def test_few_steps_give_exactly_the_moments_that_their_recursion_predicts(
    steps: list[int], scale: float, temperature: float
) -> None:
    """Everything is linear and Gaussian: mean and variance after each move are known in closed form."""
    levels = GaussianLevels(fine_schedule(0.3))
    schedule = levels.schedule
    mean_x, variance_x = 0.0, 1.0
    for level in reversed(range(schedule.num_levels)):
        table = {name: getattr(schedule, name)[level].item() for name in ("precision", "step_size", "alpha_y")}
        mean, variance = levels.mean[level].item(), levels.variance[level].item()
        s2, precision = (scale * table["step_size"]) ** 2, table["precision"]
        # y = a x + b + noise of variance r; proposed from x itself, then moved as often as its level says.
        a, b, r = 1.0, 0.0, schedule.proposal_std[level].item() ** 2
        shrink = 1 - s2 / 2 * (1 / variance + precision)
        for _ in range(steps[level]):
            a = shrink * a + s2 / 2 * precision
            b = shrink * b + s2 / 2 * mean / variance
            r = shrink**2 * r + temperature * s2
        mean_x = (a * mean_x + b) / table["alpha_y"]
        variance_x = (a**2 * variance_x + r) / table["alpha_y"] ** 2
    alpha, sigma = schedule.alpha_bar[0].item(), schedule.sigma_bar[0].item()
    shrink = 1 - 2 * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
    expected_mean = (mean_x + (1 - shrink) * (alpha * MEAN - mean_x)) / alpha
    expected_variance = variance_x * (shrink / alpha) ** 2

    noise = ImageNoise(range(256))
    drawn = sample(
        schedule,
        levels.identity,
        levels.log_density,
        noise,
        SHAPE,
        chain_plan(schedule, steps=steps, step_scale=scale, temperature=temperature, denoise=2.0),
    )
    count = drawn.numel()
    assert drawn.mean().item() == pytest.approx(expected_mean, abs=4 * math.sqrt(expected_variance / count))
    assert drawn.var().item() == pytest.approx(expected_variance, rel=4 * math.sqrt(2 / count))


def test_a_budget_of_other_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="steps: expected a number for each of 6 levels, found 2"):
        sample(
            fine_schedule(),
            lambda x, level: x,
            gaussian_like,
            ImageNoise([1]),
            SHAPE,
            chain_plan(fine_schedule(), steps=[1, 2]),
        )


def test_auto_costs_29_gradients_of_six_levels_and_goes_as_far_as_15_steps_a_level() -> None:
    plan = plan_chains(SamplerSettings(steps="auto"), trained_steps=8, num_levels=6)
    assert plan.steps == (5, 5, 5, 5, 5, 4)
    # Steps of size s spread a chain by s^2 each.
    assert 5 * plan.step_scale**2 == pytest.approx(15)
    assert plan.temperature == 0.72
    assert plan_chains(SamplerSettings(steps="auto", temperature=0.9), 8, 6).temperature == 0.9
    by_default = plan_chains(SamplerSettings(), trained_steps=8, num_levels=4)
    assert (by_default.steps, by_default.step_scale, by_default.temperature) == ((8,) * 4, 1.0, 1.0)


@pytest.mark.parametrize("level", [0, 2, 5])
def test_denoising_with_factor_1_is_the_posterior_mean(level: int) -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig(logsnr_max=2.0))
    levels, x = GaussianLevels(schedule), torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    alpha, sigma = schedule.alpha_bar[level], schedule.sigma_bar[level]
    posterior = MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)
    torch.testing.assert_close(denoised(schedule, levels.log_density, x, 1.0, level), posterior)


def test_denoising_is_linear_in_its_factor_and_factor_0_only_rescales() -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig(logsnr_max=2.0))
    levels, x0 = GaussianLevels(schedule), torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    c0, c1, c2 = (denoised(schedule, levels.log_density, x0, c) for c in (0.0, 1.0, 2.0))
    torch.testing.assert_close(c0, x0 / schedule.alpha_bar[0])
    torch.testing.assert_close(c2 - c1, c1 - c0)


def test_factor_0_asks_for_no_density() -> None:
    def log_density(y: Tensor, level: int) -> Tensor:
        raise AssertionError("the density was asked for")

    drawn = sample(
        fine_schedule(),
        lambda x, level: x,
        log_density,
        ImageNoise(range(2)),
        SHAPE,
        chain_plan(fine_schedule(), steps=0, denoise=0.0),
    )
    assert drawn.shape == (2, *SHAPE)


def test_the_proposal_is_noised_and_divided_by_alpha_where_no_steps_follow() -> None:
    schedule, seeds = fine_schedule(), range(3)
    drawn = sample(
        schedule,
        lambda x, level: 0.5 * x,
        gaussian_like,
        ImageNoise(seeds),
        SHAPE,
        chain_plan(schedule, steps=0, denoise=0.0),
    )
    noise = ImageNoise(seeds)
    x = noise.normal(SHAPE)
    for level in (5, 4, 3, 2, 1, 0):
        x = (0.5 * x + schedule.proposal_std[level] * noise.normal(SHAPE)) / schedule.alpha_y[level]
    torch.testing.assert_close(drawn, x / schedule.alpha_bar[0])


def gaussian_like(y: Tensor, level: int) -> Tensor:
    return -y.flatten(1).square().sum(dim=1) / 2


@pytest.mark.parametrize(("steps", "passes"), [(0, 1), (3, 1), (2, 3)])
def test_callback_and_density_see_every_move_with_what_constrain_puts_back(steps: int, passes: int) -> None:
    moves: list[tuple[int, int]] = []
    asked: list[int] = []

    def constrain(y: Tensor, level: int) -> Tensor:
        return torch.cat([torch.full_like(y[:, :, :1], float(level)), y[:, :, 1:]], dim=2)

    def assert_put_back(y: Tensor, level: int) -> None:
        assert (y[:, :, 0] == level).all()
        assert (y[:, :, 1:] != level).all()

    def log_density(y: Tensor, level: int) -> Tensor:
        assert_put_back(y, level)
        asked.append(level)
        return gaussian_like(y, level)

    def callback(*, level: int, step: int, y: Tensor) -> None:
        assert_put_back(y, level)
        moves.append((level, step))

    sample(
        fine_schedule(),
        lambda x, level: x,
        log_density,
        ImageNoise(range(2)),
        SHAPE,
        chain_plan(fine_schedule(), steps=steps, denoise=0.0, passes=passes),
        constrain=constrain,
        callback=callback,
    )
    levels = (5, 4, 3, 2, 1, 0)
    assert moves == [(level, step) for level in levels for _ in range(passes) for step in range(steps + 1)]
    assert asked == [level for level in levels for _ in range(passes * steps)]


def test_what_constrain_puts_back_is_what_the_chain_goes_on_from() -> None:
    schedule = fine_schedule()

    def constrain(y: Tensor, level: int) -> Tensor:
        return torch.full_like(y, 0.25)

    drawn = sample(
        schedule,
        lambda x, level: x,
        gaussian_like,
        ImageNoise(range(2)),
        SHAPE,
        chain_plan(schedule, steps=1, denoise=0.0),
        constrain=constrain,
    )
    torch.testing.assert_close(drawn, torch.full_like(drawn, 0.25) / schedule.alpha_y[0] / schedule.alpha_bar[0])


def test_plain_langevin_is_the_plain_loop_bit_for_bit_at_a_gradient_a_step() -> None:
    levels, steps, calls = GaussianLevels(fine_schedule(0.1)), 4, 0
    schedule = levels.schedule

    def log_density(y: Tensor, level: int) -> Tensor:
        nonlocal calls
        calls += 1
        return levels.log_density(y, level)

    drawn = sample(
        schedule,
        levels.posterior_mean,
        log_density,
        ImageNoise(range(3)),
        SHAPE,
        chain_plan(schedule, steps=steps, denoise=0.0),
    )
    assert calls == steps * schedule.num_levels

    noise = ImageNoise(range(3))
    x = noise.normal(SHAPE)
    for level in reversed(range(schedule.num_levels)):
        y = levels.posterior_mean(x, level) + schedule.proposal_std[level] * noise.normal(SHAPE)
        s, precision = schedule.step_size[level], schedule.precision[level]
        for _ in range(steps):
            y.requires_grad_()
            (gradient,) = torch.autograd.grad(levels.log_density(y, level).sum(), y)
            y = y.detach()
            gradient = gradient.addcmul(y - x, precision, value=-1)
            y = y + s**2 / 2 * gradient + s * noise.normal(SHAPE)
        x = y / schedule.alpha_y[level]
    assert torch.equal(drawn, x / schedule.alpha_bar[0])


@pytest.mark.parametrize("kernel", [mala, hmc(2)])
def test_constrain_holds_under_kernels_that_reject(kernel: Kernel) -> None:
    """Known pixels stay put though proposals move them; unknown ones still find the data."""
    levels = GaussianLevels(fine_schedule(0.3))

    def constrain(y: Tensor, level: int) -> Tensor:
        return torch.cat([levels.mean[level].expand_as(y[:, :, :8]), y[:, :, 8:]], dim=2)

    drawn = sample(
        levels.schedule,
        levels.identity,
        levels.log_density,
        ImageNoise(range(4)),
        SHAPE,
        chain_plan(levels.schedule, steps=8, denoise=0.0, kernel=kernel),
        constrain=constrain,
    )
    torch.testing.assert_close(drawn[:, :, :8], torch.full_like(drawn[:, :, :8], MEAN))
    assert drawn[:, :, 8:].std() > 0.2


@pytest.mark.parametrize(("steps", "factor"), [(15, 1.0), (30, math.sqrt(0.5)), (5, math.sqrt(3)), (0, 1.0)])
def test_step_adjustment_is_table_2s(steps: int, factor: float) -> None:
    assert step_adjustment(15, steps) == pytest.approx(factor)


def test_step_adjustment_keeps_the_total_of_squared_step_sizes() -> None:
    assert [k * step_adjustment(15, k) ** 2 for k in (3, 5, 8, 15)] == pytest.approx([15] * 4)


@pytest.mark.parametrize("kernel", [langevin, mala, hmc(2)])
@pytest.mark.parametrize("seeds", [(4,), (9, 4), (4, 1, 2)])
def test_an_image_depends_on_its_own_seed_alone(seeds: Sequence[int], kernel: Kernel) -> None:
    def draw(seeds: Sequence[int]) -> Tensor:
        levels, noise = GaussianLevels(fine_schedule(0.1)), ImageNoise(seeds)
        return sample(
            levels.schedule,
            levels.posterior_mean,
            levels.log_density,
            noise,
            SHAPE,
            chain_plan(levels.schedule, steps=3, kernel=kernel),
        )

    torch.testing.assert_close(draw(seeds)[list(seeds).index(4)], draw([4])[0], rtol=0, atol=1e-6)


def test_settings_decide_upon_images_just_where_they_change_some() -> None:
    levels = GaussianLevels(fine_schedule(coefficient=1.0))
    images: dict[bytes, str] = {}
    told = set()
    for kernel, leapfrog_steps, steps, adjusted, temperature in itertools.product(
        ("langevin", "mala", "hmc"), (2, 3), (0, 2, 4, "auto"), (False, True), (None, 0.5)
    ):
        settings = {"kernel": kernel, "leapfrog_steps": leapfrog_steps, "steps": steps}
        config = SamplerSettings.model_validate({**settings, "step_adjustment": adjusted, "temperature": temperature})
        drawn = sample(
            levels.schedule,
            levels.posterior_mean,
            levels.log_density,
            ImageNoise(range(16)),
            (1, 2, 2),
            plan_chains(config, trained_steps=4, num_levels=6),
        )
        words = json.dumps(settings_that_change_images(config, trained_steps=4))
        assert images.setdefault(drawn.numpy().tobytes(), words) == words
        told.add(words)
    assert len(told) == len(images)
