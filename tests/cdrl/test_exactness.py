"""The whole method where the truth is known in closed form or by numerical integration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from cdrl.config import ScheduleConfig
from cdrl.model import CDRL
from cdrl.sampling.kernels import Kernel, Position, hmc, langevin, mala, recovery, with_gradient
from cdrl.sampling.sampler import LevelLogDensity, Propose, denoised, refine, sample
from cdrl.schedule import NoiseSchedule
from cdrl.training.objective import LossSettings, Networks, cooperative_losses
from pipelines.composition import composed
from pipelines.guidance import guided
from tests.cdrl.exact import GaussianData, ManyChains, assert_moments, covariance_of
from tests.helpers import chain_plan

MEAN = torch.tensor([0.4, -0.7, 0.2])
COVARIANCE = covariance_of(0.9, 0.5, 0.3)
KERNELS: dict[str, Kernel] = {"langevin": langevin, "mala": mala, "hmc": hmc(2)}


def gaussian_data(coefficient: float, *, reference: bool = False, dimensions: int = 3) -> GaussianData:
    """Steps of s_t^2 = coefficient sigma_{t+1}^2."""
    config = ScheduleConfig(step_coefficient=coefficient, step_scaling="constant")
    schedule = NoiseSchedule.from_config(config, gaussian_reference=reference)
    return GaussianData(schedule, MEAN[:dimensions], COVARIANCE[:dimensions, :dimensions])


def exact_initializer(data: GaussianData) -> Propose:
    return lambda x, level: data.conditional(x, level).mean


def wrong_initializer(data: GaussianData) -> Propose:
    return lambda x, level: torch.full_like(x, 0.5)


def drawn_from(data: GaussianData, propose: Propose, chains: int, steps: int, kernel: Kernel) -> Tensor:
    """Algorithm 2 with the exact density, without the last denoising."""
    noise, shape = ManyChains(chains), data.mean.shape
    return sample(
        data.schedule,
        propose,
        data.log_density,
        noise,
        shape,
        chain_plan(data.schedule, steps=steps, denoise=0.0, kernel=kernel),
    )


@pytest.mark.parametrize(
    ("initializer", "reference"), [(exact_initializer, True), (wrong_initializer, False), (wrong_initializer, True)]
)
@pytest.mark.parametrize(
    ("kernel", "coefficient", "steps", "bias"),
    [("langevin", 0.1, 80, 0.03), ("mala", 0.8, 25, 0.0), ("hmc", 0.5, 12, 0.0)],
)
def test_algorithm_2_gives_back_mean_and_covariance_of_the_data(
    kernel: str,
    coefficient: float,
    steps: int,
    bias: float,
    reference: bool,
    initializer: Callable[[GaussianData], Propose],
) -> None:
    data = gaussian_data(coefficient, reference=reference)
    drawn = drawn_from(data, initializer(data), 6000, steps, KERNELS[kernel])
    remaining = (data.schedule.sigma_bar[0] / data.schedule.alpha_bar[0]) ** 2
    assert_moments(drawn, MEAN, COVARIANCE + remaining * torch.eye(3), slack=bias)


def test_more_and_shorter_langevin_steps_come_closer_to_the_covariance() -> None:
    def error(coefficient: float, steps: int) -> float:
        data = gaussian_data(coefficient, dimensions=2)
        drawn = drawn_from(data, wrong_initializer(data), 8000, steps, KERNELS["langevin"])
        return float((drawn.T.cov() - data.covariance).norm() / data.covariance.norm())

    errors = [error(0.8, 2), error(0.8, 12), error(0.08, 80)]
    assert errors[0] > 2 * errors[2]
    assert errors[1] > 1.5 * errors[2]
    assert errors[2] < 0.08


def langevin_covariance(covariance: Tensor, step_size: Tensor) -> Tensor:
    """Where unadjusted Langevin steps end for a Gaussian: C (I - s^2 / 4 C^-1)^-1."""
    return torch.linalg.inv(torch.linalg.inv(covariance) @ (torch.eye(3) - step_size**2 / 4 * covariance.inverse()))


@pytest.mark.parametrize("start", ["in equilibrium", "elsewhere"])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("level", [1, 5])
def test_a_kernel_leaves_the_exact_conditional_unchanged_and_finds_it(name: str, start: str, level: int) -> None:
    """With steps so long that unadjusted Langevin is far off: its bias is known, and must be there."""
    data, count = gaussian_data(1.0), 12_000
    x_next = 1.3 * torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    conditional = data.conditional(x_next, level)
    covariance = conditional.covariance_matrix
    covariance = covariance if covariance.ndim == 2 else covariance[0]
    step_size = 1.1 * torch.linalg.eigvalsh(covariance)[0].sqrt()
    stationary = langevin_covariance(covariance, step_size) if name == "langevin" else covariance
    assert (langevin_covariance(covariance, step_size) - covariance).norm() > 0.2 * covariance[0, 0]

    noise = ManyChains(count)
    y = torch.full((count, 3), 2.0)
    if start == "in equilibrium":
        y = conditional.mean + MultivariateNormal(torch.zeros(3), stationary).sample((count,))
    target = recovery(with_gradient(lambda y: data.log_density(y, level)), x_next, data.schedule.precision[level])
    steps = 40 if start == "elsewhere" else 10
    y = refine(Position(y, target), step_size, noise, steps, KERNELS[name]).y
    assert_moments(y - conditional.mean, torch.zeros(3), stationary)


def test_denoising_with_factor_1_is_the_exact_posterior_mean() -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig(logsnr_max=1.0))
    data = GaussianData(schedule, MEAN, COVARIANCE)
    x0 = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    alpha, sigma = schedule.alpha_bar[0], schedule.sigma_bar[0]
    gain = alpha * COVARIANCE @ (alpha**2 * COVARIANCE + sigma**2 * torch.eye(3)).inverse()
    expected = MEAN + (x0 - alpha * MEAN) @ gain.T
    torch.testing.assert_close(denoised(schedule, data.log_density, x0, 1.0), expected, rtol=1e-4, atol=1e-5)


class GaussianConcepts(nn.Module):
    """In a model's place: class c has a Gaussian density of its own at every level, and so has the null class."""

    labels = CDRL.labels

    def __init__(self, densities: Sequence[MultivariateNormal], null: MultivariateNormal) -> None:
        super().__init__()
        self.densities, self.num_classes = [null, *densities], len(densities)
        self.device = nn.Parameter(torch.zeros(()))

    def conditioned(self, label: Any) -> Any:
        return ConditionedConcepts(self, label)


class ConditionedConcepts:
    def __init__(self, model: GaussianConcepts, label: Any) -> None:
        self.model, self.label = model, label

    def log_density(self, y: Tensor, level: int) -> Tensor:
        labels = self.model.labels(self.label, len(y), y.device)
        values = torch.stack([density.log_prob(y) for density in self.model.densities])
        return values.gather(0, labels[None] + 1)[0]

    def propose(self, x_next: Tensor, level: int) -> Tensor:
        labels = self.model.labels(self.label, len(x_next), x_next.device)
        return torch.stack([density.mean for density in self.model.densities])[labels + 1]


CONCEPTS: Any = GaussianConcepts(
    [
        MultivariateNormal(torch.tensor([1.0, 0.0]), covariance_of(0.8, 0.4)),
        MultivariateNormal(torch.tensor([0.0, -1.0]), covariance_of(0.5, 0.7, angle=-0.4)),
        MultivariateNormal(torch.tensor([-0.5, 0.5]), covariance_of(0.6, 0.6)),
    ],
    MultivariateNormal(torch.zeros(2), covariance_of(2.0, 1.5)),
)


def product(powers: dict[int, float]) -> MultivariateNormal:
    """The normalized product of the concepts' Gaussians (-1: null), each to its power."""
    densities = {label: CONCEPTS.densities[label + 1] for label in powers}
    precision = sum((p * densities[c].precision_matrix for c, p in powers.items()), torch.zeros(2, 2))
    pull = sum((p * densities[c].precision_matrix @ densities[c].mean for c, p in powers.items()), torch.zeros(2))
    return MultivariateNormal(precision.inverse() @ pull, precision_matrix=precision)


def assert_same_density(log_density: LevelLogDensity, expected: MultivariateNormal, count: int) -> None:
    """Equal up to a constant, with equal gradients; and chains that obey it have its moments."""
    y = 2 * torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    value, gradient = with_gradient(lambda y: log_density(y, 0))(y)
    theirs, their_gradient = with_gradient(expected.log_prob)(y)
    torch.testing.assert_close(value - value[0], theirs - theirs[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-4, atol=1e-4)
    chains = Position(torch.zeros(count, 2), with_gradient(lambda y: log_density(y, 0)))
    drawn = refine(chains, torch.tensor(0.4), ManyChains(count), 60, mala).y
    assert_moments(drawn, expected.mean, expected.covariance_matrix)


@pytest.mark.parametrize("weight", [0.0, 0.7, 2.0])
def test_guidance_is_a_product_of_gaussians(weight: float) -> None:
    """Eq. 11: p(y | c)^(1 + w) / p(y)^w."""
    count = 3000
    propose, log_density = guided(CONCEPTS, torch.full((count,), 1), weight)
    assert_same_density(log_density, product({1: 1 + weight, -1: -weight}), count)
    mean = CONCEPTS.densities[2].mean
    torch.testing.assert_close(propose(torch.zeros(count, 2), 0)[0], (1 + weight) * mean)


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("concepts", [(0,), (0, 1), (2, 0, 1)])
def test_composition_is_a_product_of_gaussians(concepts: tuple[int, ...], weight: float) -> None:
    """Eq. 14: prod_i p(y | c_i)^(1 + w) / p(y)^(Mw + M - 1), proposed by the unconditional initializer."""
    count, num = 3000, len(concepts)
    propose, log_density = composed(CONCEPTS, concepts, weight, count)
    powers = {**dict.fromkeys(concepts, 1 + weight), -1: -(num * weight + num - 1)}
    assert_same_density(log_density, product(powers), count)
    torch.testing.assert_close(propose(torch.ones(count, 2), 0), torch.zeros(count, 2))


def test_the_plain_sum_is_the_product_without_the_null_class() -> None:
    count = 3000
    _, log_density = composed(CONCEPTS, (0, 2), None, count)
    assert_same_density(log_density, product({0: 1.0, 2: 1.0}), count)


def test_composition_needs_a_concept() -> None:
    with pytest.raises(ValueError, match="concepts: expected at least one"):
        composed(CONCEPTS, (), 0.0, 4)


class FewParameters(nn.Module):
    """f(y) = theta . (y, -y^2 / 2, cos 2y) at every level of 1-D points; f-hat is s_t^2 times that."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.theta = nn.Parameter(torch.tensor([0.9, 0.6, -0.7]))

    @staticmethod
    def features(y: Tensor) -> Tensor:
        """[..., 3] of y [...]."""
        return torch.stack([y, -(y**2) / 2, torch.cos(2 * y)], dim=-1)

    def condition(self, logsnr: Tensor, label: Tensor) -> Tensor:
        level = (self.schedule.logsnr[:-1] - logsnr[:, None]).abs().argmin(dim=1)
        return self.schedule.step_size[level] ** 2

    def __call__(self, y: Tensor, *condition: Tensor) -> Tensor:
        factor = condition[0] if len(condition) == 1 else self.condition(*condition)
        return factor * (self.features(y[:, 0]) @ self.theta)

    def conditional(self, grid: Tensor, x_next: Tensor, precision: Tensor) -> Tensor:
        """p_theta(y | x_next) on a fine grid [G], by numerical integration: [N, G], rows that sum to 1."""
        log_p = self.features(grid) @ self.theta - precision[:, None] / 2 * (grid - x_next) ** 2
        return log_p.detach().softmax(dim=1)


@pytest.mark.parametrize("negatives", ["exact", "from the chain"])
def test_the_training_steps_gradient_is_that_of_the_recovery_log_likelihood(negatives: str) -> None:
    """Eq. 4: grad log p(y | x_next) = phi(y) - E[phi(y') | x_next], the integral done on a grid."""
    config = ScheduleConfig(num_levels=3, step_coefficient=0.1, step_scaling="constant")
    schedule = NoiseSchedule.from_config(config)
    energy, grid, count = FewParameters(schedule), torch.linspace(-7, 7, 281), 10_000
    pairs: list[Tensor] = []

    def initializer(x_next: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
        level = (schedule.logsnr - logsnr[:, None]).abs().argmin(dim=1) - 1
        p = energy.conditional(grid, x_next, schedule.precision[level])
        pairs.extend([x_next, p])
        if negatives == "from the chain":
            return torch.zeros_like(x_next)
        # A draw from the grid, spread over its cell.
        cell = (grid[1] - grid[0]) * (torch.rand(count, 1, generator=torch.Generator().manual_seed(5)) - 0.5)
        return grid[p.multinomial(1, generator=torch.Generator().manual_seed(6))] + cell

    steps = 240
    if negatives == "exact":
        steps, schedule = 0, dataclasses.replace(schedule, proposal_std=torch.zeros(3))
    x0 = torch.randn(count, 1, generator=torch.Generator().manual_seed(1)).sign() * 0.8
    null = torch.full((count,), -1)
    chain: Any = energy
    y: list[Tensor] = []

    def recorded(both: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
        y.append(both[count:, 0])
        return energy(both, logsnr, label)

    networks = Networks(recorded, initializer, chain)
    losses = cooperative_losses(x0, null, ManyChains(count), networks, schedule, LossSettings(steps))
    (ours,) = torch.autograd.grad(losses.energy, [energy.theta])

    level, (_, p) = losses.chain.pair.level, pairs
    weight = (schedule.loss_weight * schedule.step_size**2)[level][:, None]
    features = energy.features(grid)
    gradient = energy.features(y[0]) - p @ features
    expected = -(weight * gradient).mean(dim=0)
    # What is left is the draw of one negative a pair, and the chain's small bias.
    variance = p @ features**2 - (p @ features) ** 2
    error = 4.5 * (weight**2 * variance).mean(dim=0).sqrt() / count**0.5
    bias = 0.0 if negatives == "exact" else 0.02 * (weight * variance.sqrt()).mean(dim=0)
    assert ((ours - expected).abs() <= error + bias).all(), (ours, expected, error)
    assert (expected.abs() > 5 * error).all()
