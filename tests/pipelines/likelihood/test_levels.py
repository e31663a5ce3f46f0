"""The path's ends against densities and covariances that are known."""

from __future__ import annotations

import math

import pytest
import torch

from pipelines.likelihood.annealing import Spread
from pipelines.likelihood.levels import LevelPath, clean_spread, noised_spread, standard_normal, stretched
from tests.pipelines.likelihood.known import Mixture

ALL = slice(0, 7)


@pytest.fixture(scope="module")
def truth() -> Mixture:
    return Mixture.random(3, 2, num_levels=4)


def path(truth: Mixture, lowest: int = 0) -> LevelPath:
    return LevelPath(truth, torch.full((7,), -1), truth.spread(), lowest)  # type: ignore[arg-type]


def test_neighbouring_segments_meet_in_one_density(truth: Mixture) -> None:
    """The end of one in the coordinates of the next one's start, up to the change of volume."""
    levels = path(truth)
    assert list(levels.segments) == [3, 2, 1, 0]
    assert list(path(truth, 2).segments) == [3, 2]
    for level in (3, 2, 1):
        y = truth.sample(7, level)
        upper, lower = levels.segment(level), levels.segment(level - 1)
        value, gradient = upper.end(ALL)(y)
        x = y * levels.between(level)
        value_next, gradient_next = lower.start(ALL)(x)
        torch.testing.assert_close(value_next, value)
        torch.testing.assert_close(gradient_next, gradient / levels.between(level))
        torch.testing.assert_close(value, truth.exact(y, level) + truth.log_z(level))


def test_the_start_is_standard_noise_and_the_density_of_x_next_is_what_y_with_noise_has(truth: Mixture) -> None:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    value, gradient = path(truth).segment(3).start(ALL)(x)
    torch.testing.assert_close(value, torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(dim=1))
    torch.testing.assert_close(gradient, -x)
    assert standard_normal(x)[0].tolist() == value.tolist()
    # u = x_{t+1} = y_t + sigma eps: variances of both ends differ by sigma^2.
    for level in (2, 1, 0):
        segment = path(truth).segment(level)
        sigma = float(truth.schedule.sigma_step[level])
        torch.testing.assert_close(
            segment.start_spread.variances, segment.end_spread.variances + sigma**2, rtol=1e-4, atol=1e-6
        )


def test_a_spread_is_the_covariance_of_what_is_sampled(truth: Mixture) -> None:
    for level in (0, 3):
        scale = float(truth.schedule.alpha_y[level])
        found = noised_spread(truth.spread(), truth.schedule, level, scale)
        drawn = truth.sample(200_000, level).var(dim=0)
        torch.testing.assert_close(found.variances, drawn, rtol=0.02, atol=0)


@pytest.mark.parametrize("count", [4, 400])
def test_principal_directions_of_few_and_of_many_images(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    grids = torch.randn(count, 2, 3, 1, generator=generator) * torch.linspace(0.1, 2, 6).view(2, 3, 1)
    found = clean_spread(grids)
    covariance = torch.cov(grids.flatten(1).T)
    along = found.directions.T @ covariance @ found.directions
    torch.testing.assert_close(along, torch.diag(found.variances), rtol=1e-3, atol=1e-4)
    assert found.directions.shape == (6, min(6, count - 1))
    assert float(found.variances.sum()) == pytest.approx(float(covariance.trace()), rel=1e-4)
    assert found.rest == pytest.approx(0, abs=1e-5)


def test_beyond_the_directions_that_are_told_apart_the_rest_is_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.likelihood.levels._DIRECTIONS", 1)
    grids = torch.diag(torch.tensor([4.0, 2.0, 1.0])).repeat(2, 1)
    found = clean_spread(grids)
    covariance = torch.cov(grids.T)
    assert float(found.variances) == pytest.approx(float(torch.linalg.eigvalsh(covariance)[-1]), rel=1e-5)
    assert found.rest == pytest.approx((float(covariance.trace()) - float(found.variances)) / 2, rel=1e-5)
    assert isinstance(found, Spread)


def test_a_stretched_target_is_one_of_what_is_divided(truth: Mixture) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    value, gradient = stretched(standard_normal, 0.5)(x)
    torch.testing.assert_close(value, -x.square().sum(dim=1) / 8 - 3 * math.log(2 * math.pi) / 2)
    torch.testing.assert_close(gradient, -x / 4)
