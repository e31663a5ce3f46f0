"""What the networks are told beside the grid: conditions found once, and waves that noise wipes out."""

from __future__ import annotations

import math

import torch

from cdrl.networks.embedding import distinct_conditions, fourier_features, noised_amplitudes, random_frequencies


def test_distinct_conditions_hold_every_pair_once_and_give_each_image_its_own() -> None:
    logsnr = torch.tensor([9.8, -5.1, 9.8, 0.25, 9.8, -5.1])
    label = torch.tensor([3, -1, -1, 3, 3, -1])
    levels, classes, index = distinct_conditions(logsnr, label)
    assert len(set(zip(levels.tolist(), classes.tolist(), strict=True))) == len(levels) == 4
    assert torch.equal(levels[index], logsnr)
    assert torch.equal(classes[index], label)


def test_waves_are_damped_as_their_mean_over_the_noise() -> None:
    """E[sin(w (y + sigma eps))] = exp(-w^2 sigma^2 / 2) sin(w y), by Monte Carlo."""
    torch.manual_seed(0)
    frequencies = torch.tensor([[2.0, 0.5, 6.0], [1.0, -3.0, 0.0]])
    y, logsnr = torch.tensor([[0.3, -0.7]]), torch.tensor([1.5])
    noise = torch.sigmoid(-logsnr).sqrt() * torch.randn(200_000, 2)
    expected = fourier_features(y + noise, frequencies).mean(dim=0, keepdim=True)
    amplitudes = noised_amplitudes(logsnr, frequencies)
    torch.testing.assert_close(fourier_features(y, frequencies, amplitudes), expected, rtol=0, atol=0.01)
    assert amplitudes[0, 2] < 0.1 < amplitudes[0, 0]


def test_the_slope_of_the_features_is_that_of_damped_waves() -> None:
    """d/dy of (y, a sin(w y), a cos(w y)) is (1, a w cos(w y), -a w sin(w y)), with a = exp(-|w|^2 sigma^2 / 2)."""
    frequencies = torch.tensor([[2.0, 0.5, 6.0], [1.0, -3.0, 0.0]])
    y, logsnr = torch.tensor([0.3, -0.7]), torch.tensor([1.5])
    amplitudes = noised_amplitudes(logsnr, frequencies)
    slope = torch.autograd.functional.jacobian(lambda y: fourier_features(y[None], frequencies, amplitudes)[0], y)
    damping = torch.tensor([math.exp(-(a**2 + b**2) / (2 * (1 + math.exp(1.5)))) for a, b in frequencies.T.tolist()])
    sine, cosine = ((y @ frequencies).sin(), (y @ frequencies).cos())
    waves = [(damping * frequencies * cosine).T, (-damping * frequencies * sine).T]
    torch.testing.assert_close(slope, torch.cat([torch.eye(2), *waves]))


def test_features_begin_with_the_coordinates_and_lie_on_circles() -> None:
    frequencies = random_frequencies(2, 500)
    assert frequencies is not None
    assert (frequencies.std() / (2 * math.pi) - 1).abs() < 0.1
    points = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    features = fourier_features(points, frequencies)
    assert torch.equal(features[:, :2], points)
    sines, cosines = features[:, 2:].chunk(2, dim=1)
    torch.testing.assert_close(sines.square() + cosines.square(), torch.ones(7, 500))
    torch.testing.assert_close(sines[3, 8], (points[3] @ frequencies[:, 8]).sin())
    assert random_frequencies(2, 0) is None
