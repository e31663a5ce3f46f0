"""Weights whose mean is known, and resampling by counting."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipelines.likelihood.bridge import acceptance_ratio, effective_samples, estimate, log_mean, resampled

RATIO, SPREAD = 5.0, 1.5


def weights(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of two Gaussians that are ``SPREAD`` apart, with exp(5) between their normalizers: forward, and back."""
    draws = torch.randn(2, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return RATIO + SPREAD * draws[0] - SPREAD**2 / 2, -RATIO + SPREAD * draws[1] - SPREAD**2 / 2


def test_the_mean_of_weights_is_that_of_numbers() -> None:
    numbers = torch.tensor([0.5, 1.0, 3.0, 0.0], dtype=torch.float64)
    assert log_mean(numbers.log()) == pytest.approx(math.log(4.5 / 4))
    assert effective_samples(numbers.log()) == pytest.approx(4.5**2 / 10.25)
    assert effective_samples(torch.full((3,), -math.inf)) == 0
    assert estimate(1000 + numbers.log()).log_z == pytest.approx(1000 + math.log(4.5 / 4))
    assert estimate(torch.zeros(5)).standard_error == 0
    assert estimate(torch.full((3,), -math.inf)).standard_error == math.inf


def test_the_acceptance_ratio_finds_the_ratio_with_less_error_than_either_direction() -> None:
    bridges, forwards = [], []
    for seed in range(200):
        forward, back = weights(100, seed)
        bridges.append(acceptance_ratio(forward, back))
        forwards.append(log_mean(forward))
    found = torch.tensor([bridge.log_ratio for bridge in bridges])
    claimed = sum(bridge.standard_error for bridge in bridges) / 200
    assert found.mean().item() == pytest.approx(RATIO, abs=4 * found.std().item() / math.sqrt(200))
    # The spread of 200 is known to 5 %.
    assert claimed == pytest.approx(found.std().item(), rel=0.2)
    assert found.std() < 0.7 * torch.tensor(forwards).std()
    assert all(0.2 < bridge.overlap < 0.8 for bridge in bridges)


def test_the_acceptance_ratio_solves_its_equation_for_unequal_numbers() -> None:
    forward, _ = weights(50, 1)
    _, back = weights(400, 2)
    log_ratio = acceptance_ratio(forward, back).log_ratio
    m = math.log(50 / 400)
    left = (1 / (1 + (m + log_ratio - forward).exp())).sum()
    right = (1 / (1 + (-m - log_ratio - back).exp())).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-6)
    assert log_ratio == pytest.approx(RATIO, abs=0.5)


def test_directions_that_agree_overlap_wholly_and_those_without_weight_not_at_all() -> None:
    same = acceptance_ratio(torch.full((8,), 2.0).double(), torch.full((8,), -2.0).double())
    assert (same.log_ratio, same.standard_error) == (pytest.approx(2.0), pytest.approx(0, abs=1e-6))
    assert same.overlap == pytest.approx(1)
    none = acceptance_ratio(torch.full((8,), -math.inf).double(), torch.zeros(8).double())
    assert math.isnan(none.log_ratio)
    assert none.overlap == 0


def test_chains_are_copied_in_proportion_to_their_weights() -> None:
    shares = torch.tensor([0.1, 0.4, 0.0, 0.5], dtype=torch.float64)
    copies = torch.zeros(4)
    for turn in range(1000):
        rows = resampled(shares.log(), (turn + 0.5) / 1000)
        counts = torch.bincount(rows, minlength=4).float()
        assert ((counts - 4 * shares).abs() < 1).all()
        copies += counts
    torch.testing.assert_close(copies / 4000, shares.float(), rtol=0, atol=1e-3)
    assert resampled(torch.zeros(6, dtype=torch.float64), 0.3).tolist() == [0, 1, 2, 3, 4, 5]
