"""The bound of the chain of conditionals, on levels that agree with one another: there it is the log density itself."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdrl.sampling.kernels import with_gradient
from cdrl.sampling.noise import ImageNoise
from cdrl.training.engine import World
from pipelines.likelihood.annealing import Spread
from pipelines.likelihood.chain import ChainBound, conditional_segment, trajectory
from pipelines.likelihood.levels import LevelPath
from pipelines.likelihood.normalizer import Effort
from tests.pipelines.likelihood.known import Mixture

ALONE = World(0, 1, torch.device("cpu"))
COUNT = 12


def bound(truth: Mixture, x: Tensor, folder: Path, effort: Effort) -> ChainBound:
    path = LevelPath(truth, torch.full((len(x),), -1), truth.spread())  # type: ignore[arg-type]
    return ChainBound(path, effort, folder, ALONE)


def clean_with_noise(truth: Mixture, count: int = COUNT) -> Tensor:
    return truth.sample(count, 0, seed=3) / float(truth.schedule.alpha_y[0])


@pytest.mark.parametrize(("dimension", "components"), [(2, 3), (5, 2)])
def test_of_levels_that_agree_it_is_the_log_density_for_every_noising(
    dimension: int, components: int, tmp_path: Path
) -> None:
    truth = Mixture.random(dimension, components, num_levels=4)
    x = clean_with_noise(truth)
    effort = Effort(chains=16, temperatures=200, equilibration=5, batch_size=400)
    found = bound(truth, x, tmp_path, effort).run(x)
    exact = truth.exact(float(truth.schedule.alpha_y[0]) * x, 0) + dimension * truth.schedule.alpha_y[0].log()
    for end in ("lower", "upper"):
        values = found.bound(truth.log_z(3), end=end)
        # Constants of the levels cancel: that of the highest one is its log Z.
        torch.testing.assert_close(values.float(), exact, rtol=0, atol=1.5)
        assert float(values.mean() - exact.mean()) == pytest.approx(0, abs=0.3)


def test_the_two_directions_bracket_each_normalizer(tmp_path: Path) -> None:
    truth = Mixture.random(5, 1, num_levels=3)
    x = clean_with_noise(truth)
    coarse = bound(
        truth, x, tmp_path / "coarse", Effort(chains=2, temperatures=20, equilibration=5, batch_size=100)
    ).run(x)
    fine = bound(truth, x, tmp_path / "fine", Effort(chains=2, temperatures=160, equilibration=5, batch_size=100)).run(
        x
    )
    gaps = [float((each.upper - each.lower).sum(dim=0).mean()) for each in (coarse, fine)]
    assert gaps[0] > 2 * gaps[1] > 0
    assert float((coarse.bound(0.0, end="lower") - coarse.bound(0.0, end="upper")).mean()) == pytest.approx(gaps[0])


def test_levels_that_disagree_give_less_than_the_log_density(tmp_path: Path) -> None:
    """Level 0 is right, level 1 is that of data four times as wide: the bound's gap is a divergence, and positive."""
    truth = Mixture.random(2, 1, num_levels=3)
    wide = dataclasses.replace(truth, variances=16 * truth.variances)

    class Disagreeing(Mixture):
        def exact(self, y: Tensor, level: int) -> Tensor:
            return (truth if level == 0 else wide).exact(y, level)

    model = Disagreeing(truth.means, truth.variances, truth.weights, truth.schedule)
    x = clean_with_noise(truth, 200)
    effort = Effort(chains=4, temperatures=60, equilibration=5, batch_size=800)
    values = bound(model, x, tmp_path, effort).run(x).bound(truth.log_z(2), end="upper")
    exact = truth.exact(float(truth.schedule.alpha_y[0]) * x, 0) + 2 * truth.schedule.alpha_y[0].log()
    assert float(values.mean()) < float(exact.mean()) - 0.3


def test_a_conditional_segment_has_the_normalizers_of_gaussians() -> None:
    """f of a Gaussian N(0, v): G(x) is the density N(x; 0, v + sigma^2) without its constant at f."""
    variance, sigma = 0.5, 0.3
    x_next = torch.tensor([[0.4, -1.0], [2.0, 0.0]])
    target = with_gradient(lambda y: -y.square().sum(dim=1) / (2 * variance))
    even = Spread.even(2, variance)
    segment = conditional_segment(lambda chains: target, x_next, sigma, even)
    start = torch.distributions.Normal(x_next, sigma).log_prob(torch.zeros(2, 2)).sum(dim=1)
    torch.testing.assert_close(segment.start(slice(None))(torch.zeros(2, 2))[0], start)
    y = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    end, gradient = segment.end(slice(None))(y)
    expected = -y.square().sum(dim=1) / (2 * variance) + torch.distributions.Normal(x_next, sigma).log_prob(y).sum(
        dim=1
    )
    torch.testing.assert_close(end, expected)
    torch.testing.assert_close(gradient, -y / variance - (y - x_next) / sigma**2)
    assert segment.end_spread.rest == pytest.approx(1 / (1 / variance + sigma**-2))
    assert segment.start_spread.rest == pytest.approx(sigma**2)
    # Some of the chains have their own x_{t+1}.
    torch.testing.assert_close(segment.end(slice(1, 2))(y[1:])[0], expected[1:])


def test_a_trajectory_has_the_marginals_and_the_joint_of_the_noising() -> None:
    truth = Mixture.random(1, 1, num_levels=3)
    schedule = truth.schedule
    x = torch.full((3000, 1), 1.5)
    states = trajectory(schedule, x, ImageNoise(range(3000)))
    assert len(states) == 3
    share, sigma = float(schedule.alpha_bar[2] / schedule.alpha_bar[0]), 0.0
    sigma = math.sqrt(float(schedule.sigma_bar[2]) ** 2 - (share * float(schedule.sigma_bar[0])) ** 2)
    assert states[2].mean().item() == pytest.approx(1.5 * share, abs=0.06)
    assert states[2].std().item() == pytest.approx(sigma, rel=0.05)
    step = states[2] - float(schedule.alpha_step[1]) * states[1]
    assert torch.corrcoef(torch.cat([step, states[1]], dim=1).T)[0, 1].abs() < 0.06


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    truth = Mixture.random(2, 1, num_levels=3)
    x = clean_with_noise(truth, 5)
    effort = Effort(chains=4, temperatures=20, equilibration=2, batch_size=8)
    first = bound(truth, x, tmp_path, effort).run(x)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "level_0_2.safetensors").unlink()
    second = bound(truth, x, tmp_path, effort).run(x)
    torch.testing.assert_close(second.lower, first.lower)
    changed = [path.name for path, time in kept.items() if path.stat().st_mtime_ns != time]
    assert changed == ["level_0_2.safetensors"]
