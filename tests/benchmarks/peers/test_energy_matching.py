"""Energy Matching's parts against closed forms, differences and trying all pairings."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

from benchmarks.peers.energy_matching import (
    EPSILON,
    FLOOR,
    STEP,
    WEIGHT,
    Contrastive,
    Flow,
    Potential,
    chain,
    contrast,
    coupled,
    gradient,
    temperature,
    trimmed_mean,
)
from benchmarks.peers.unet import Optimization, new_unet
from tests.benchmarks.peers.tasks import digits_task
from tests.helpers import scrambled

CURVATURE = 4.0


class Quadratic(nn.Module):
    """V(x) = CURVATURE / 2 |x - class|^2."""

    def __init__(self) -> None:
        super().__init__()
        self.curvature = nn.Parameter(torch.tensor(CURVATURE))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.curvature / 2 * (x - label[:, None, None, None]).square().sum(dim=(1, 2, 3))


def test_the_gradient_is_that_of_the_potential() -> None:
    x, label = torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 2])
    potential = Quadratic()
    expected = CURVATURE * (x - label[:, None, None, None])
    torch.testing.assert_close(gradient(potential, x, label), expected)
    # With trains, the weights learn from it: d/dc mean |c (x - m)|^2 = 2 c mean (x - m)^2.
    found = gradient(potential, x, label, trains=True)
    found.square().mean().backward()
    assert potential.curvature.grad is not None
    torch.testing.assert_close(potential.curvature.grad, 2 * expected.square().mean() / CURVATURE)


def test_a_networks_gradient_is_its_slope() -> None:
    task = digits_task()
    potential = scrambled(Potential(new_unet(8, task)), scale=0.05).double().eval()
    x, way = torch.randn(2, 2, 1, 8, 8, dtype=torch.float64)
    label, step = torch.tensor([3, 7]), 1e-2  # parts of it compute in single precision
    slope = (potential(x + step * way, label) - potential(x - step * way, label)) / (2 * step)
    torch.testing.assert_close((gradient(potential, x, label) * way).sum(dim=(1, 2, 3)), slope, rtol=2e-3, atol=1e-3)
    assert not torch.allclose(potential(x, label), potential(x, label + 1))


def test_pairs_are_the_nearest_of_all_pairings_within_each_class() -> None:
    torch.manual_seed(0)
    noise, images = torch.randn(2, 7, 1, 2, 2)
    label = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    paired = coupled(noise, images, label)
    for one in (0, 1):
        rows = (label == one).nonzero()[:, 0]
        costs = [
            float((images[rows] - noise[rows[list(order)]]).square().sum())
            for order in itertools.permutations(range(len(rows)))
        ]
        assert float((images[rows] - paired[rows]).square().sum()) == pytest.approx(min(costs))
        # The noise of a class stays with it.
        assert sorted(paired[rows].flatten().tolist()) == sorted(noise[rows].flatten().tolist())


def test_chains_follow_the_gradient_and_then_reach_equilibrium() -> None:
    assert [temperature(0.0), temperature(0.99), temperature(1.0), temperature(3.0)] == [0, 0, EPSILON, EPSILON]
    torch.manual_seed(0)
    potential, label = Quadratic(), torch.zeros(2000, dtype=torch.int64)
    x, generator = torch.randn(2000, 1, 2, 2), torch.Generator().manual_seed(0)
    quiet = round(1 / STEP)
    torch.testing.assert_close(chain(potential, x, label, quiet, generator), x * (1 - STEP * CURVATURE) ** quiet)
    ended = chain(potential, x, label, 5 * quiet, generator)
    # The stationary variance of the discrete chain; EPSILON / CURVATURE as the step goes to 0.
    expected = 2 * STEP * EPSILON / (1 - (1 - STEP * CURVATURE) ** 2)
    assert float(ended.var()) == pytest.approx(expected, rel=0.05)


def test_the_highest_tenth_is_left_out() -> None:
    assert float(trimmed_mean(torch.tensor([9.0, *[float(n % 3) for n in range(9)]]))) == 1
    assert float(trimmed_mean(torch.tensor([3.0, 5.0]))) == 4


@pytest.mark.parametrize("phase", [Flow, Contrastive])
def test_both_phases_learn(phase: type[Flow]) -> None:
    task = digits_task()
    learner = phase(task, Potential(new_unet(8, task)), Optimization(batch_size=16), updates=20)
    before = {name: value.clone() for name, value in learner.network.named_parameters()}
    losses = []
    images, label = task.batches(16).batch(0)
    for step in range(3):
        losses.append(float(learner.loss(images, label).detach()))
        learner.update(step)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert any(not torch.equal(before[name], value) for name, value in learner.network.named_parameters())
    assert all(value.requires_grad for value in learner.network.parameters())


def test_the_contrast_lowers_images_and_raises_the_ends_of_chains_until_they_are_apart() -> None:
    at_images, at_ends = torch.tensor([2.0, 4.0], requires_grad=True), torch.tensor([1.0, 3.0], requires_grad=True)
    loss = contrast(at_images, at_ends)
    assert float(loss.detach()) == pytest.approx(WEIGHT * (3 - 2))
    slopes = torch.autograd.grad(loss, (at_images, at_ends))
    torch.testing.assert_close(slopes, (torch.full((2,), WEIGHT / 2), torch.full((2,), -WEIGHT / 2)))
    far = contrast(at_images, at_ends + 1000)
    assert float(far.detach()) == pytest.approx(FLOOR)
    assert all(not slope.any() for slope in torch.autograd.grad(far, (at_images, at_ends)))
