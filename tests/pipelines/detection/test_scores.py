"""Scores: readings against exact densities, figures against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from cdrl.config import ScheduleConfig
from cdrl.schedule import NoiseSchedule
from pipelines.detection.scores import Readings, all_scores, detection_figures, read_levels
from tests.cdrl.exact import GaussianData, covariance_of

MEAN, COVARIANCE = torch.tensor([0.4, -0.7, 0.2]), covariance_of(0.9, 0.5, 0.3)


@pytest.fixture(scope="module")
def gaussian() -> GaussianData:
    return GaussianData(NoiseSchedule.from_config(ScheduleConfig()), MEAN, COVARIANCE)


# ---- figures


def test_figures_of_a_few_images_are_those_counted_by_hand() -> None:
    """Pairs in order: 3 + 3 + 1.5 of 9, where the tie counts half."""
    figures = detection_figures(torch.tensor([5.0, 4.0, 2.0]), torch.tensor([2.0, 3.0, 1.0]))
    assert figures["auroc"] == pytest.approx(7.5 / 9)
    # From above: in, in, out, then one of either kind at once, then out.
    assert figures["aupr_in"] == pytest.approx((1 / 1 + 2 / 2 + 3 / 5) / 3)
    # From below: out, then one of either kind at once, then out.
    assert figures["aupr_out"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 4) / 3)
    # All three pass at a threshold of 2 only, where 3 and 2 of the others pass too.
    assert figures["fpr95"] == pytest.approx(2 / 3)


def test_scores_all_alike_tell_nothing_and_disjoint_ones_everything() -> None:
    alike = detection_figures(torch.zeros(5), torch.zeros(15))
    assert alike == pytest.approx({"auroc": 0.5, "aupr_in": 0.25, "aupr_out": 0.75, "fpr95": 1.0})
    apart = detection_figures(torch.arange(5.0) + 10, torch.arange(15.0) - 10)
    assert apart == pytest.approx({"auroc": 1.0, "aupr_in": 1.0, "aupr_out": 1.0, "fpr95": 0.0})


@pytest.mark.parametrize("distance", [0.0, 0.7, 2.5])
def test_figures_of_two_gaussians_are_the_closed_forms(distance: float) -> None:
    """AUROC = Phi(d / sqrt 2); a share Phi(1.645 - d) of the others lies above the inside's lowest twentieth."""
    quantiles = Normal(0.0, 1.0).icdf((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    figures = detection_figures(quantiles + distance, quantiles)
    standard = Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    assert figures["auroc"] == pytest.approx(float(standard.cdf(torch.tensor(distance / math.sqrt(2)))), abs=1e-4)
    threshold = distance + standard.icdf(torch.tensor(0.05, dtype=torch.float64))
    assert figures["fpr95"] == pytest.approx(1 - float(standard.cdf(threshold)), abs=1e-3)


# ---- readings and scores


def test_readings_without_noise_are_the_exact_densities_of_the_scaled_data(gaussian: GaussianData) -> None:
    """At level 0, up to a constant, the log density of the data themselves but for the noise of level 0."""
    schedule = gaussian.schedule
    points = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    readings = read_levels(schedule, gaussian.log_density, points)
    for level in range(schedule.num_levels):
        y = schedule.alpha_y[level] * schedule.alpha_bar[level] * points
        marginal = gaussian.marginal(level)
        constant = marginal.log_prob(marginal.mean)
        expected = (marginal.log_prob(y) - constant).double()
        torch.testing.assert_close(readings.log_density[:, level], expected, rtol=1e-4, atol=1e-4)
        slope = (marginal.precision_matrix @ (y - marginal.mean).T).norm(dim=0).double()
        torch.testing.assert_close(readings.gradient_norm[:, level], slope, rtol=1e-4, atol=1e-4)
    data = torch.distributions.MultivariateNormal(MEAN, COVARIANCE)
    exact = data.log_prob(points).double()
    exact = exact - data.log_prob(MEAN)
    torch.testing.assert_close(readings.log_density[:, 0], exact, rtol=2e-3, atol=1e-3)


def test_readings_depend_on_the_image_alone(gaussian: GaussianData) -> None:
    points = torch.randn(300, 3, generator=torch.Generator().manual_seed(2))
    together = read_levels(gaussian.schedule, gaussian.log_density, points)
    apart = read_levels(gaussian.schedule, gaussian.log_density, points[290:])
    torch.testing.assert_close(together.log_density[290:], apart.log_density, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.gradient_norm[290:], apart.gradient_norm, rtol=1e-5, atol=1e-5)


def test_an_exact_model_tells_two_gaussians_as_well_as_can_be() -> None:
    """Data N(0, 1) against N(d, 1) in one dimension: f_0 orders by |x|; the chance is known in closed form.

    |x| of either is folded: P(|x| < |x'|) = P((x' - x)(x' + x) > 0), and x' - x and x' + x are independent N(d, 2).
    """
    schedule = NoiseSchedule.from_config(ScheduleConfig())
    data = GaussianData(schedule, torch.zeros(1), torch.eye(1))
    generator, distance = torch.Generator().manual_seed(3), 2.0
    inside, outside = torch.randn(2, 20_000, 1, generator=generator)
    scores = [read_levels(schedule, data.log_density, x).log_density[:, 0] for x in (inside, outside + distance)]
    p = float(Normal(0.0, 1.0).cdf(torch.tensor(distance / math.sqrt(2))))
    assert detection_figures(*scores)["auroc"] == pytest.approx(p**2 + (1 - p) ** 2, abs=0.012)


def test_scores_are_what_their_names_say() -> None:
    generator = torch.Generator().manual_seed(4)
    mixing = torch.randn(4, 4, dtype=torch.float64, generator=generator)

    def readings(count: int) -> Readings:
        mixed = torch.randn(count, 4, dtype=torch.float64, generator=generator) @ mixing * torch.tensor([1e3, 1, 1, 1])
        return Readings(mixed[:, :2], mixed[:, 2:])

    reference, found = readings(50), readings(7)
    scores = all_scores(found, reference)
    assert list(scores) == ["level_0", "level_1", "gradient", "ratio", "typicality", "joint"]
    assert torch.equal(scores["level_1"], found.log_density[:, 1])
    assert torch.equal(scores["gradient"], -found.gradient_norm[:, 0])
    (low, high), (std_low, std_high) = found.log_density.T, reference.log_density.std(dim=0)
    mean_low, mean_high = reference.log_density.mean(dim=0)
    torch.testing.assert_close(scores["ratio"], (low - mean_low) / std_low - (high - mean_high) / std_high)
    torch.testing.assert_close(scores["typicality"], -(low - mean_low).abs())
    every = torch.cat([reference.log_density, reference.gradient_norm], dim=1)
    offset = torch.cat([found.log_density, found.gradient_norm], dim=1) - every.mean(dim=0)
    distance = torch.linalg.solve(every.T.cov(), offset.T).T.mul(offset).sum(dim=1)
    torch.testing.assert_close(scores["joint"], -distance)
