"""Baselines on data whose density is known."""

from __future__ import annotations

import math

import pytest
import torch

from pipelines.likelihood import baselines
from pipelines.likelihood.baselines import gaussian, mixture

ALPHA, SIGMA = 0.9, 0.3


def test_a_gaussian_has_the_moments_of_noisy_images() -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(20_000, 2, generator=generator) * torch.tensor([1.0, 0.0]) + 2
    images = torch.tensor([[1.8, 1.8], [0.0, 1.5]])
    found = gaussian(train, images, ALPHA, SIGMA)
    std = torch.tensor([math.sqrt(ALPHA**2 + SIGMA**2), SIGMA])
    expected = torch.distributions.Normal(torch.tensor([1.8, 1.8]), std).log_prob(images).sum(dim=1)
    torch.testing.assert_close(found.log_density.float(), expected, rtol=0, atol=0.05)


def test_the_mixture_that_is_chosen_finds_clusters_which_a_gaussian_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "COMPONENTS", (1, 2, 4))
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    train = centers[torch.arange(400) % 4]
    images = ALPHA * centers[torch.arange(800) % 4] + SIGMA * torch.randn(800, 2, generator=generator)
    found = mixture(train, images, ALPHA, SIGMA)
    assert found.name == "mixture of 4 Gaussians, full covariances (the best of 1 to 4)"
    entropy = math.log(4) + 2 * math.log(SIGMA * math.sqrt(2 * math.pi * math.e))
    assert found.log_density.mean().item() == pytest.approx(-entropy, abs=0.1)
    assert gaussian(train, images, ALPHA, SIGMA).log_density.mean() < -entropy - 0.5
