"""Annealing between Gaussians, whose normalizers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cdrl.sampling.kernels import hmc, with_gradient
from cdrl.sampling.noise import ImageNoise
from pipelines.likelihood.annealing import Ladder, Pilot, Segment, Spread, anneal, equilibrate, integrate, pilot_run
from pipelines.likelihood.bridge import estimate

LOG_TAU = math.log(2 * math.pi)


def gaussian(std: Tensor, mean: float = 0.0) -> object:
    target = with_gradient(lambda y: -((y - mean) / std).square().sum(dim=1) / 2)
    return lambda chains: target


WIDE, NARROW = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.1, 1.6, 0.2])
TRUTH = float((NARROW / WIDE).log().sum())


def spread(std: Tensor) -> Spread:
    return Spread(torch.eye(3), std.square(), 1.0)


def segment() -> Segment:
    return Segment(gaussian(WIDE), gaussian(NARROW, 0.3), spread(WIDE), spread(NARROW))  # type: ignore[arg-type]


def draws(std: Tensor, count: int, mean: float = 0.0, seed: int = 0) -> Tensor:
    return mean + std * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def noise(count: int, seed: int = 0) -> ImageNoise:
    return ImageNoise(range(seed * 100_000, seed * 100_000 + count))


@pytest.fixture(scope="module")
def pilot() -> Pilot:
    groups = torch.zeros(64, dtype=torch.int64)
    return pilot_run(segment(), draws(WIDE, 64), noise(64), hmc(1), groups=groups)[0]


@pytest.mark.parametrize("leapfrog_steps", [1, 3])
def test_both_directions_have_the_ratio_as_their_mean_weight(pilot: Pilot, leapfrog_steps: int) -> None:
    """On a path of few temperatures, where no chain is in equilibrium."""
    ladder = pilot.ladder(20)
    kernel, count = hmc(leapfrog_steps), 4000
    there = anneal(segment(), ladder, draws(WIDE, count), noise(count), kernel)
    returned = anneal(segment(), ladder, draws(NARROW, count, 0.3), noise(count, 1), kernel, back=True)
    for found, truth in ((there, TRUTH), (returned, -TRUTH)):
        value = estimate(found.log_weights)
        assert found.log_weights.std() > 0.3
        assert value.standard_error < 0.06
        assert value.log_z == pytest.approx(truth, abs=3 * value.standard_error)
    # Jensen: each chain's log weight is below the log ratio on average.
    assert there.log_weights.mean() < TRUTH - 0.05
    assert returned.log_weights.mean() < -TRUTH - 0.05


def test_the_pilot_finds_steps_that_are_accepted_as_they_should_be(pilot: Pilot) -> None:
    assert pilot.betas[0] == 0
    assert pilot.betas[-1] == 1
    assert list(pilot.betas) == sorted(set(pilot.betas))
    assert list(pilot.lengths) == sorted(set(pilot.lengths))
    there = anneal(segment(), pilot.ladder(40), draws(WIDE, 500), noise(500), hmc(1))
    assert 0.5 < there.accepted < 0.8


@pytest.mark.parametrize("leapfrog_steps", [1, 3])
def test_the_integral_over_temperatures_is_the_ratio(pilot: Pilot, leapfrog_steps: int) -> None:
    found = integrate(segment(), pilot, draws(WIDE, 400), noise(400), hmc(leapfrog_steps), moves=10)
    error = float(found.log_weights.std()) / 400**0.5
    assert error < 0.05
    assert float(found.log_weights.mean()) == pytest.approx(TRUTH, abs=4 * error)
    torch.testing.assert_close(found.grids.std(dim=0), NARROW, rtol=0.12, atol=0)


def test_more_temperatures_make_weights_even(pilot: Pilot) -> None:
    spreads = [
        float(anneal(segment(), pilot.ladder(count), draws(WIDE, 200), noise(200), hmc(1)).log_weights.std())
        for count in (8, 32, 128)
    ]
    assert spreads[0] > 1.5 * spreads[1] > 2 * spreads[2]


def test_chains_end_where_the_end_is(pilot: Pilot) -> None:
    there = anneal(segment(), pilot.ladder(200), draws(WIDE, 1000), noise(1000), hmc(1))
    torch.testing.assert_close(there.grids.mean(dim=0), torch.full((3,), 0.3), rtol=0, atol=0.25)
    torch.testing.assert_close(there.grids.std(dim=0), NARROW, rtol=0.1, atol=0)


def test_moves_at_the_end_leave_its_samples_what_they_are() -> None:
    start = draws(NARROW, 2000, 0.3)
    moved = equilibrate(segment(), 1.0, start, noise(2000), hmc(2), steps=5)
    assert 0.5 < moved.accepted < 1
    assert not torch.equal(moved.grids, start)
    torch.testing.assert_close(moved.grids.std(dim=0), NARROW, rtol=0.06, atol=0)
    assert torch.equal(moved.log_weights, torch.zeros(2000, dtype=torch.float64))


def test_a_chain_depends_on_its_own_seed_alone(pilot: Pilot) -> None:
    ladder, start = pilot.ladder(20), draws(WIDE, 6)
    whole = anneal(segment(), ladder, start, noise(6), hmc(1))
    part = anneal(segment(), ladder, start[2:4], ImageNoise([2, 3]), hmc(1), chains=slice(2, 4))
    torch.testing.assert_close(part.grids, whole.grids[2:4])
    torch.testing.assert_close(part.log_weights, whole.log_weights[2:4])


def test_a_ladder_has_its_temperatures_at_equal_lengths() -> None:
    pilot = Pilot(betas=(0.0, 0.01, 1.0), lengths=(0.0, 1.0, 2.0), step_sizes=(0.5, 0.5, 2.0))
    ladder = pilot.ladder(4)
    assert ladder.betas == pytest.approx((0, 0.005, 0.01, 0.505, 1))
    assert ladder.step_sizes == pytest.approx((0.5, 0.5, 1.0))
    assert Pilot((0.0, 1.0), (0.0, 1.0), (1.0, 1.0)).ladder(1) == Ladder((0.0, 1.0), ())


def test_a_spread_is_the_root_of_its_covariance() -> None:
    directions = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))[0][:, :2]
    found = Spread(directions, torch.tensor([4.0, 0.25]), 0.09)
    rest = torch.eye(5) - directions @ directions.T
    covariance = directions @ torch.diag(torch.tensor([4.0, 0.25])) @ directions.T + 0.09 * rest
    z = torch.eye(5).view(5, 5, 1)
    root = found.scaled(z)[..., 0]
    torch.testing.assert_close(root @ root, covariance)
    torch.testing.assert_close(found.unscaled(found.scaled(z)), z)
    other = Spread(directions, torch.tensor([1.0, 1.0]), 0.01)
    middle = found.between(other, 0.25)
    assert middle.variances.tolist() == pytest.approx([1 / (0.75 / 4 + 0.25), 1 / (3 + 0.25)])
    assert middle.rest == pytest.approx(1 / (0.75 / 0.09 + 25))


def test_groups_of_the_pilot_are_resampled_among_themselves() -> None:
    """Two groups with other constants: their weights differ by exp(50) between the groups, and not within."""

    def start(chains: slice) -> object:
        return with_gradient(lambda y: -y.square().sum(dim=1) / 2)

    offset = torch.tensor([0.0, 50.0]).repeat_interleave(32)

    def end(chains: slice) -> object:
        return with_gradient(lambda y: -y.square().sum(dim=1) + offset[chains])

    even = Spread.even(3, 1.0)
    two = Segment(start, end, even, even)  # type: ignore[arg-type]
    grids = draws(torch.ones(3), 64)
    groups = (offset > 0).long()
    found, _ = pilot_run(two, grids, noise(64), hmc(1), groups=groups)
    assert len(found.betas) < 24
