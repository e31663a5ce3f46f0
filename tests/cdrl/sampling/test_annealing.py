"""Annealed importance sampling against integrals that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cdrl.sampling.annealing import Bracket, Gaussian, log_normalizer

LOG_SQRT_TAU = math.log(math.sqrt(2 * math.pi))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_gaussian(dimension: int, chains: int, temperatures: int, seed: int = 0) -> tuple[Bracket, float]:
    """The bracket of a Gaussian with unequal variances, and the true log Z."""
    std, mean = torch.linspace(0.4, 1.6, dimension), torch.linspace(-1, 1, dimension)
    samples = mean + std * torch.randn(2 * chains, dimension, generator=generator(seed + 100))
    bracket = log_normalizer(
        lambda y: 3.0 - ((y - mean) / std).square().sum(dim=1) / 2,
        Gaussian.fitted(samples[:chains]),
        samples[chains:],
        temperatures=temperatures,
        generator=generator(seed),
    )
    return bracket, 3.0 + dimension * LOG_SQRT_TAU + std.log().sum().item()


@pytest.mark.parametrize("dimension", [1, 4, 24])
def test_both_ends_of_the_bracket_find_a_gaussians_normalizer(dimension: int) -> None:
    bracket, truth = of_gaussian(dimension, chains=512, temperatures=300)
    for estimate in (bracket.lower, bracket.upper):
        assert estimate.log_z == pytest.approx(truth, abs=0.05)
        assert 0 < estimate.standard_error < 0.05
        assert 256 < estimate.effective_samples <= 512


def test_grids_of_any_shape_are_one_long_vector() -> None:
    """Three pixels of two channels: an isotropic Gaussian, which the start equals up to its fit."""
    samples = 0.5 * torch.randn(512, 2, 3, 1, generator=generator(1))
    bracket = log_normalizer(
        lambda y: -2 * y.flatten(1).square().sum(dim=1),
        Gaussian.fitted(samples[:256]),
        samples[256:],
        temperatures=20,
        generator=generator(),
    )
    truth = 6 * (LOG_SQRT_TAU + math.log(0.5))
    assert bracket.lower.log_z == pytest.approx(truth, abs=0.02)
    assert bracket.upper.log_z == pytest.approx(truth, abs=0.02)


def test_the_weights_are_unbiased_also_on_a_coarse_path() -> None:
    """With five temperatures nothing is in equilibrium; Z is still the weights' mean if the moves are exact."""

    def log_density(y: Tensor) -> Tensor:
        return torch.logsumexp(torch.cat([-8 * (y - 1) ** 2, -2 * (y + 1) ** 2 + math.log(0.5)], dim=1), dim=1)

    narrow, wide = math.sqrt(math.pi / 8), 0.5 * math.sqrt(math.pi / 2)
    count = 40_000
    first = torch.rand(count, 1, generator=generator(2)) < narrow / (narrow + wide)
    noise = torch.randn(count, 1, generator=generator(3))
    samples = torch.where(first, 1 + noise / 4, -1 + noise / 2)
    bracket = log_normalizer(log_density, Gaussian(torch.zeros(1), 1.5), samples, temperatures=5, generator=generator())
    for estimate in (bracket.lower, bracket.upper):
        assert estimate.log_z == pytest.approx(math.log(narrow + wide), abs=4 * estimate.standard_error)
        assert estimate.standard_error < 0.03


def test_a_path_too_coarse_brackets_the_truth_from_both_sides() -> None:
    pairs = [of_gaussian(24, chains=16, temperatures=6, seed=seed) for seed in range(20)]
    truth = pairs[0][1]
    lower, upper = (sum(values) / 20 for values in zip(*((b.lower.log_z, b.upper.log_z) for b, _ in pairs)))
    assert lower < truth - 0.2
    assert upper > truth + 0.2


def test_a_standard_error_is_the_spread_over_repetitions() -> None:
    estimates = [of_gaussian(4, chains=256, temperatures=12, seed=seed)[0].lower for seed in range(60)]
    spread = torch.tensor([estimate.log_z for estimate in estimates]).std().item()
    claimed = sum(estimate.standard_error for estimate in estimates) / 60
    # The spread of 60 is known to 9 %.
    assert claimed == pytest.approx(spread, rel=0.3)


def test_the_start_is_a_normalized_gaussian_with_its_gradient() -> None:
    start = Gaussian(torch.tensor([1.0, -2.0]), 0.7)
    y = torch.randn(5, 2, generator=generator(), dtype=torch.float64).requires_grad_()
    expected = torch.distributions.Normal(start.mean.double(), 0.7).log_prob(y).sum(dim=1)
    (gradient,) = torch.autograd.grad(expected.sum(), y)
    value, ours = start.target(y.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(ours, gradient)
    draws = start.sample(40_000, generator())
    torch.testing.assert_close(draws.mean(dim=0), start.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(draws.std(dim=0), torch.tensor([0.7, 0.7]), rtol=0, atol=0.01)
