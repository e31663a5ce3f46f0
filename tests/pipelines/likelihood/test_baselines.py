"""Baselines on data whose density is known."""

from __future__ import annotations

import math

import pytest
import torch

from cdrl.runs.run import RunError
from pipelines.likelihood import baselines
from pipelines.likelihood.baselines import Fitted, check_baselines, flow, gaussian, mixture

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


def test_beyond_the_directions_that_are_mixed_all_components_share_one_gaussian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(baselines, "COMPONENTS", (1, 2))
    generator = torch.Generator().manual_seed(0)
    narrow = torch.randn(2000, 3, generator=generator) * torch.tensor([0.3, 0.1, 0.0])
    train = torch.cat([(torch.arange(2000) % 2 * 4 - 2)[:, None] + 0.2 * narrow[:, 1:2], narrow], dim=1)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    train = train @ turn
    images = ALPHA * train + SIGMA * torch.randn(2000, 4, generator=generator)
    whole = mixture(train, images, ALPHA, SIGMA)
    monkeypatch.setattr(baselines, "MIXED", 1)
    found = mixture(train, images, ALPHA, SIGMA)
    assert found.name == "mixture of 2 Gaussians in 1 principal directions, full covariances (the best of 1 to 2)"
    assert found.log_density.mean().item() == pytest.approx(whole.log_density.mean().item(), abs=0.02)
    assert gaussian(train, images, ALPHA, SIGMA).log_density.mean() < found.log_density.mean() - 0.3


def test_a_flow_finds_what_is_no_gaussian_and_is_a_density(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_LONGEST", 500)
    generator = torch.Generator().manual_seed(0)

    def bent(count: int) -> torch.Tensor:
        first = torch.randn(count, generator=generator)
        return torch.stack([first, first.square() / 2], dim=1)

    train = bent(4000)
    images = ALPHA * bent(2000) + SIGMA * torch.randn(2000, 2, generator=generator)

    def found(images: torch.Tensor) -> Fitted:
        return flow(train, images, ALPHA, SIGMA)

    side = torch.linspace(-6, 10, 161)
    grid = torch.cartesian_prod(side, side)
    both = found(torch.cat([images, grid])).log_density
    nats, mass = both[: len(images)].mean(), both[len(images) :].exp().sum() * (side[1] - side[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=0.01)
    # p(y) = E_x N(y; alpha x, sigma^2), by as many draws of x as are needed.
    centers = ALPHA * bent(20_000)
    squared = torch.cdist(images, centers).square()
    truth = (-squared / (2 * SIGMA**2)).logsumexp(dim=1) - math.log(len(centers) * 2 * math.pi * SIGMA**2)
    assert float(truth.mean()) - 0.1 < float(nats) < float(truth.mean()) + 0.01
    assert gaussian(train, images, ALPHA, SIGMA).log_density.mean() < truth.mean() - 0.2


def test_unknown_baselines_and_missing_packages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    check_baselines(("gaussian", "flow"))
    with pytest.raises(ValueError, match="expected one of gaussian, mixture, flow, found glow"):
        check_baselines(("glow",))
    with pytest.raises(ValueError, match="gaussian stands twice"):
        check_baselines(("gaussian", "gaussian"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"pip install 'cdrl\[flow\]'"):
        check_baselines(("flow",))
