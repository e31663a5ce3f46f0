"""Grids and divergences over the plane against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.studies.plane import Grid, coloured, kl_divergence, total_variation


def gaussian(points: Tensor, mean: tuple[float, float], std: tuple[float, float]) -> Tensor:
    """Unnormalized log density."""
    return -((points - torch.tensor(mean)) / torch.tensor(std)).square().sum(dim=1) / 2


def test_kl_of_two_gaussians_is_the_closed_form_and_has_a_direction() -> None:
    grid = Grid(6.0, 240)
    p = gaussian(grid.points(), (0.3, -0.2), (0.5, 0.8)) + 7.0
    q = gaussian(grid.points(), (-0.1, 0.4), (0.9, 0.6)) - 2.0

    def closed(mean1: float, std1: float, mean2: float, std2: float) -> float:
        return math.log(std2 / std1) + (std1**2 + (mean1 - mean2) ** 2) / (2 * std2**2) - 0.5

    forward = closed(0.3, 0.5, -0.1, 0.9) + closed(-0.2, 0.8, 0.4, 0.6)
    assert kl_divergence(p, q) == pytest.approx(forward, abs=1e-6)
    assert abs(kl_divergence(q, p) - forward) > 0.1
    assert kl_divergence(p, p) == 0


def test_kl_counts_nothing_where_p_vanishes() -> None:
    p = torch.tensor([0.5, 0.5, 0.0]).log()
    q = torch.tensor([0.25, 0.25, 0.5]).log()
    assert kl_divergence(p, q) == pytest.approx(math.log(2))
    assert kl_divergence(q, p) == math.inf


def test_the_grids_normalizer_is_the_integral() -> None:
    grid = Grid(6.0, 120)
    values = gaussian(grid.points(), (0.3, -0.2), (0.5, 0.8)) + 7.0
    assert grid.log_normalizer(values) == pytest.approx(7 + math.log(2 * math.pi * 0.5 * 0.8), abs=1e-6)


def test_points_are_counted_in_the_cell_whose_midpoint_is_nearest() -> None:
    grid = Grid(1.5, 3)
    points = torch.tensor([[-1.2, -1.4], [1.4, -1.0], [0.2, 0.3], [-0.9, 1.3], [1.6, 0.0], [0.0, -1.7], [0.1, 0.4]])
    shares = grid.histogram(points)
    expected = torch.zeros(10, dtype=torch.float64)
    for point in points:
        distance = (grid.points() - point).abs().amax(dim=1)
        expected[int(distance.argmin()) if distance.min() <= 0.5 else 9] += 1 / 7
    torch.testing.assert_close(shares, expected)
    assert shares[9] == pytest.approx(2 / 7)


def test_draws_have_the_density_they_are_drawn_from() -> None:
    grid, generator = Grid(2.0, 5), torch.Generator().manual_seed(0)
    density = torch.rand(25, generator=generator).double()
    density[7] = 0
    shares = grid.histogram(grid.draw(density.log(), 40_000, generator))
    expected = density / density.sum()
    error = (shares[:-1] - expected).abs()
    assert (error <= 4.5 * (expected / 40_000).sqrt()).all()
    assert shares[7] == shares[-1] == 0


def test_total_variation_is_the_mass_to_be_moved() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    assert total_variation(p, q) == pytest.approx(0.3)
    assert total_variation(p, p) == 0
    assert total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 1


def test_colours_darken_with_the_density_and_up_is_up() -> None:
    picture = np.asarray(coloured(torch.tensor([0.0, 0.4, 0.7, 1.5]), 4)).astype(float)
    assert picture.shape == (4, 4, 3)
    assert (picture[2:, :2] == 255).all()
    lightness = picture @ [0.2126, 0.7152, 0.0722]
    assert lightness[3, 0] > lightness[3, 3] > lightness[0, 0] > lightness[0, 3]
