"""Algorithm 1, each quantity computed again from what the networks were shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from cdrl.config import ConfigError
from cdrl.model import CDRL, proposal_mean
from cdrl.sampling.noise import ImageNoise
from cdrl.schedule import NoiseSchedule, per_image
from cdrl.training.objective import (
    Diagnostics,
    Losses,
    LossSettings,
    Networks,
    NoisedPair,
    another_class,
    classification_loss,
    cooperative_losses,
    diagnose,
)
from tests.helpers import tiny_config, tiny_model

COUNT = 24
NO_CLASSES = torch.full((COUNT,), -1)


class RecordedNoise(ImageNoise):
    """Remembers its normal draws."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(seeds)
        self.normals: list[Tensor] = []

    def normal(self, shape: Sequence[int]) -> Tensor:
        self.normals.append(super().normal(shape))
        return self.normals[-1]


@dataclass
class Seen:
    """One call of `cooperative_losses`, and what it showed the networks."""

    model: CDRL
    losses: Losses
    diagnostics: Diagnostics
    noise: RecordedNoise
    x0: Tensor
    x_next: Tensor
    mean: Tensor
    """The initializer's output, a leaf; x_next without an initializer."""
    refined: Tensor
    y: Tensor
    energy_logsnr: Tensor
    initializer_logsnr: Tensor
    energy_label: Tensor
    initializer_label: Tensor
    f: Tensor

    @property
    def schedule(self) -> NoiseSchedule:
        return self.model.schedule

    @property
    def level(self) -> Tensor:
        return self.losses.chain.pair.level

    @property
    def proposed(self) -> Tensor:
        """The noised proposal, read off the initializer loss, whose gradient is -2 (refined - proposed) / N."""
        (gradient,) = torch.autograd.grad(self.losses.initializer, self.mean, retain_graph=True)
        return (self.refined + COUNT / 2 * gradient).detach()

    def at(self, table: Tensor) -> Tensor:
        return per_image(table[self.level], self.x0)


def run(
    *,
    steps: int = 2,
    label: Tensor = NO_CLASSES,
    label_dropout: float = 0.0,
    levels: int = 6,
    reference: str = "flat",
    use_initializer: bool = True,
    measure_acceptance: bool = False,
    **options: Any,
) -> Seen:
    sections = {"schedule": {"num_levels": levels}, "energy": {"reference": reference}}
    model = tiny_model(tiny_config(**sections, initializer={"dropout": 0.0} if use_initializer else None))
    noise = RecordedNoise(range(COUNT))
    x0 = 0.5 * torch.randn(COUNT, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen: dict[str, list[Tensor]] = {"energy": [], "initializer": []}

    def energy(y: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
        assert not seen["energy"], "the energy must be called once"
        seen["energy"] += [y, logsnr, label, model.energy(y, logsnr, label)]
        return seen["energy"][-1]

    def initializer(x: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
        assert not seen["initializer"], "the initializer must be called once"
        assert model.initializer is not None
        mean = model.initializer(x, logsnr, label).detach().requires_grad_()
        seen["initializer"] += [x, logsnr, label, mean]
        return mean

    networks = Networks(energy, initializer if use_initializer else None, model.energy.fold().detach())
    settings = LossSettings(steps, label_dropout, **options)
    losses = cooperative_losses(x0, label, noise, networks, model.schedule, settings)
    both, energy_logsnr, energy_label, f = seen["energy"]
    refined, y = both.chunk(2)
    if use_initializer:
        x_next, initializer_logsnr, initializer_label, mean = seen["initializer"]
    else:
        # The second draw of the pair's noise is all that is needed to know x_next again.
        level = losses.chain.pair.level
        x_next = per_image(model.schedule.alpha_bar[level + 1], x0) * x0
        x_next = x_next + per_image(model.schedule.sigma_bar[level + 1], x0) * noise.normals[0]
        initializer_logsnr, initializer_label, mean = model.schedule.logsnr[level + 1], label, x_next
    return Seen(
        model,
        losses,
        diagnose(losses.chain, model.schedule, measure_acceptance=measure_acceptance),
        noise,
        x0,
        x_next,
        mean,
        refined,
        y,
        energy_logsnr,
        initializer_logsnr,
        energy_label,
        initializer_label,
        f,
    )


def test_both_images_of_a_pair_are_made_of_the_same_noise() -> None:
    seen = run()
    noise = (seen.x_next - seen.at(seen.schedule.alpha_bar[1:]) * seen.x0) / seen.at(seen.schedule.sigma_bar[1:])
    x = seen.at(seen.schedule.alpha_bar[:-1]) * seen.x0 + seen.at(seen.schedule.sigma_bar[:-1]) * noise
    torch.testing.assert_close(seen.y, seen.at(seen.schedule.alpha_y) * x, rtol=1e-4, atol=1e-5)
    assert noise.mean().item() == pytest.approx(0, abs=0.1)
    assert noise.var().item() == pytest.approx(1, abs=0.15)
    assert seen.level.unique().tolist() == [0, 1, 2, 3, 4, 5]


def test_independent_pairs_follow_the_true_joint() -> None:
    """x_{t+1} = alpha x_t + sigma eps', with the true alpha at the highest level too."""
    seen = run(pairs="independent_noise")
    x = seen.y / seen.at(seen.schedule.alpha_y)
    noise = (seen.x_next - seen.at(seen.schedule.alpha_step) * x) / seen.at(seen.schedule.sigma_step)
    first, second = seen.noise.normals[:2]
    torch.testing.assert_close(noise, second, rtol=1e-3, atol=1e-4)
    x0_part = seen.at(seen.schedule.alpha_bar[:-1]) * seen.x0
    expected = seen.at(seen.schedule.alpha_y) * (x0_part + seen.at(seen.schedule.sigma_bar[:-1]) * first)
    torch.testing.assert_close(seen.y, expected, rtol=1e-4, atol=1e-5)


def test_the_initializer_may_learn_from_data_instead_of_its_chain() -> None:
    seen, chained = run(target="data"), run()
    proposed = chained.proposed
    torch.testing.assert_close(seen.losses.initializer, (seen.y - proposed).square().sum() / COUNT)
    assert torch.equal(seen.refined, chained.refined)
    assert torch.equal(seen.losses.energy, chained.losses.energy)


@pytest.mark.parametrize("predicts", ["x0", "epsilon"])
def test_the_chain_starts_at_what_the_prediction_stands_for(predicts: str) -> None:
    seen = run(steps=0, predicts=predicts)
    mean = proposal_mean(seen.mean.detach(), seen.x_next, seen.schedule, seen.level, predicts)
    noise = seen.at(seen.schedule.proposal_std) * seen.noise.normals[1]
    torch.testing.assert_close(seen.refined, mean + noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_without_an_initializer_the_chain_starts_at_x_next_and_there_is_one_loss(steps: int) -> None:
    seen = run(steps=steps, use_initializer=False)
    assert seen.losses.initializer is None
    assert list(seen.losses.values()) == ["energy_loss"]
    assert len(seen.noise.normals) == 1 + steps
    moved = (seen.refined - seen.x_next).flatten(1).square().mean(dim=1).sqrt()
    s = seen.schedule.step_size[seen.level]
    torch.testing.assert_close(seen.diagnostics.displacement, moved / s, rtol=1e-3, atol=1e-4)
    if not steps:
        torch.testing.assert_close(seen.refined, seen.x_next)


def test_the_energy_is_told_its_own_level_and_the_initializer_the_next() -> None:
    seen = run()
    torch.testing.assert_close(seen.energy_logsnr, seen.schedule.logsnr[seen.level].repeat(2))
    torch.testing.assert_close(seen.initializer_logsnr, seen.schedule.logsnr[seen.level + 1])


def test_the_energy_loss_is_the_weighted_difference_of_f_hat() -> None:
    seen = run()
    f = seen.model.energy(torch.cat([seen.refined, seen.y]), seen.energy_logsnr, seen.energy_label)
    difference = f[:COUNT] - f[COUNT:]
    sigma = seen.schedule.sigma_step
    expected = sum((sigma[0] / sigma[t] * difference[i] for i, t in enumerate(seen.level.tolist())), torch.tensor(0.0))
    torch.testing.assert_close(seen.losses.energy, expected / COUNT)


def test_the_energy_loss_falls_when_data_gets_likelier_than_what_was_refined() -> None:
    seen = run()
    gradient_at_f = torch.autograd.grad(seen.losses.energy, seen.f)[0]
    assert (gradient_at_f[:COUNT] > 0).all()
    assert (gradient_at_f[COUNT:] < 0).all()


def test_the_initializer_loss_sums_over_the_image_and_averages_over_the_batch() -> None:
    seen = run()
    expected = (seen.refined - seen.proposed).square().sum() / COUNT
    torch.testing.assert_close(seen.losses.initializer, expected)
    assert expected > 0


def test_the_proposals_noise_has_its_levels_strength_and_is_not_the_pairs() -> None:
    seen = run()
    noise = (seen.proposed - seen.mean.detach()) / seen.at(seen.schedule.proposal_std)
    pairs = (seen.x_next - seen.at(seen.schedule.alpha_bar[1:]) * seen.x0) / seen.at(seen.schedule.sigma_bar[1:])
    for level in range(6):
        assert noise[seen.level == level].var().item() == pytest.approx(1, abs=0.35)
    assert (noise * pairs).mean().item() == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("reference", ["flat", "gaussian"])
@pytest.mark.parametrize("levels", [2, 6])
def test_one_step_of_the_chain_is_equation_5_without_the_quadratic_term_at_the_top(levels: int, reference: str) -> None:
    seen = run(steps=1, levels=levels, reference=reference)
    start = seen.proposed.requires_grad_()
    schedule = seen.schedule
    f = torch.stack([seen.model.log_density(start[i : i + 1], t)[0] for i, t in enumerate(seen.level.tolist())])
    (gradient,) = torch.autograd.grad(f.sum(), start)
    quadratic = (start.detach() - seen.x_next) / seen.at(schedule.sigma_step) ** 2
    top = per_image(seen.level == levels - 1, start)
    assert top.any()
    gradient = gradient - torch.where(top, 0, quadratic)
    s = seen.at(schedule.step_size)
    expected = start.detach() + s**2 / 2 * gradient + s * seen.noise.normals[-1]
    torch.testing.assert_close(seen.refined, expected, rtol=1e-3, atol=1e-4)


def test_no_steps_leave_the_proposal_and_an_initializer_loss_of_zero() -> None:
    seen = run(steps=0)
    assert seen.losses.initializer == 0
    torch.testing.assert_close(seen.refined, seen.proposed)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_chain_takes_one_draw_a_step_beside_the_pairs_and_the_proposals(steps: int) -> None:
    assert len(run(steps=steps).noise.normals) == 2 + steps


def test_parameters_get_no_gradient_from_the_chain() -> None:
    """The energy's gradient is that of a loss on constant images; the initializer's target is constant too."""
    seen = run()
    assert not seen.refined.requires_grad
    assert not seen.y.requires_grad
    parameters = list(seen.model.energy.parameters())
    gradients = torch.autograd.grad(seen.losses.energy, parameters, retain_graph=True)
    constant = torch.cat([seen.refined, seen.y]).detach()
    f = seen.model.energy(constant, seen.energy_logsnr, seen.energy_label)
    weight = seen.schedule.loss_weight[seen.level]
    expected = torch.autograd.grad((weight * (f[:COUNT] - f[COUNT:])).mean(), parameters)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_each_loss_reaches_its_own_network_only() -> None:
    seen = run()
    energy, others = list(seen.model.energy.parameters()), [seen.mean]
    from_initializer = torch.autograd.grad(seen.losses.initializer, energy, retain_graph=True, allow_unused=True)
    from_energy = torch.autograd.grad(seen.losses.energy, others, retain_graph=True, allow_unused=True)
    assert set(from_initializer) == {None}
    assert set(from_energy) == {None}


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, 1.0), (1.0, 0.0)])
def test_labels_are_dropped_for_both_networks_alike(dropout: float, kept: float) -> None:
    label = torch.arange(COUNT) % 10
    seen = run(label=label, label_dropout=dropout)
    expected = label if kept else NO_CLASSES
    assert torch.equal(seen.initializer_label, expected)
    assert torch.equal(seen.energy_label, expected.repeat(2))


def test_some_labels_are_dropped_at_a_rate_between() -> None:
    label = torch.arange(COUNT) % 10
    seen = run(label=label, label_dropout=0.5)
    dropped = seen.initializer_label == -1
    assert 4 <= dropped.sum() <= 20
    assert torch.equal(seen.initializer_label[~dropped], label[~dropped])
    assert torch.equal(seen.energy_label, seen.initializer_label.repeat(2))


def test_diagnostics_are_what_their_names_say() -> None:
    seen = run(steps=1)
    diagnostics, s = seen.diagnostics, seen.schedule.step_size[seen.level]
    f = seen.f.detach()
    torch.testing.assert_close(diagnostics.energy_gap, f[:COUNT] - f[COUNT:])
    torch.testing.assert_close(diagnostics.magnitude, f[COUNT:].abs())
    moved = (seen.refined - seen.proposed).flatten(1).square().mean(dim=1).sqrt()
    torch.testing.assert_close(diagnostics.displacement, moved / s, rtol=1e-3, atol=1e-4)
    start = seen.proposed.requires_grad_()
    (gradient,) = torch.autograd.grad(seen.model.log_density(start, seen.level).sum(), start)
    steepness = gradient.flatten(1).square().mean(dim=1).sqrt()
    torch.testing.assert_close(diagnostics.gradient_norm, steepness * s, rtol=1e-3, atol=1e-4)
    largest = torch.maximum(seen.y.flatten(1).abs().amax(dim=1), seen.schedule.alpha_y[seen.level])
    torch.testing.assert_close(diagnostics.reach, seen.refined.flatten(1).abs().amax(dim=1) / largest)
    assert diagnostics.acceptance.isnan().all()
    assert not any(value.requires_grad for value in vars(diagnostics).values())


@pytest.mark.parametrize("steps", [1, 3])
def test_the_acceptance_is_that_of_the_last_step_under_metropolis_and_hastings(steps: int) -> None:
    """Recomputed from the two places with torch's densities; the place before the last is found by a shorter chain."""
    seen, shorter = run(steps=steps, measure_acceptance=True), run(steps=steps - 1)
    assert torch.equal(seen.refined, run(steps=steps).refined), "measuring must not disturb the chain"
    here, there = shorter.refined, seen.refined
    top, s = seen.level == seen.schedule.num_levels - 1, seen.at(seen.schedule.step_size)

    def log_p(y: Tensor) -> Tensor:
        recovery = Normal(y, seen.at(seen.schedule.sigma_step)).log_prob(seen.x_next).flatten(1).sum(dim=1)
        return seen.model.log_density(y, seen.level) + torch.where(top, 0, recovery)

    def log_q(to: Tensor, of: Tensor) -> Tensor:
        of = of.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_p(of).sum(), of)
        return Normal(of + s**2 / 2 * gradient, s).log_prob(to).flatten(1).sum(dim=1).detach()

    ratio = log_p(there) + log_q(here, there) - log_p(here) - log_q(there, here)
    expected = ratio.detach().exp().clamp(max=1)
    torch.testing.assert_close(seen.diagnostics.acceptance, expected, rtol=0.02, atol=0.02)
    assert expected.min() < 0.9


def test_the_shares_of_initializer_and_chain_add_up_to_the_whole_way() -> None:
    seen = run(steps=3)
    way = (seen.refined - seen.x_next).flatten(1)
    length = way.square().sum(dim=1)
    of_initializer = ((seen.proposed - seen.x_next).flatten(1) * way).sum(dim=1) / length
    of_chain = ((seen.refined - seen.proposed).flatten(1) * way).sum(dim=1) / length
    torch.testing.assert_close(of_initializer + of_chain, torch.ones(COUNT), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen.diagnostics.initializer_share, of_initializer, rtol=0, atol=1e-4)
    torch.testing.assert_close(run(steps=0).diagnostics.initializer_share, torch.ones(COUNT))
    assert (run(steps=3, use_initializer=False).diagnostics.initializer_share == 0).all()


def test_the_losses_of_an_image_do_not_depend_on_its_batch() -> None:
    model = tiny_model(tiny_config(initializer={"dropout": 0.0}))
    x0 = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 2, -1, 4, 5])

    def losses(rows: list[int]) -> tuple[float, float]:
        networks = Networks(model.energy, model.initializer, model.energy.fold().detach())
        settings = LossSettings(langevin_steps=3, label_dropout=0.1)
        both = cooperative_losses(x0[rows], label[rows], ImageNoise(rows), networks, model.schedule, settings)
        return both.energy.item(), both.initializer.item()

    halves = [losses([0, 1, 2]), losses([3, 4, 5])]
    whole = losses([0, 1, 2, 3, 4, 5])
    assert whole == pytest.approx([sum(parts) / 2 for parts in zip(*halves, strict=True)], rel=1e-3, abs=1e-5)


def test_another_class_is_one_that_the_image_might_have_had_instead() -> None:
    label = torch.arange(6).repeat(2000)
    noise = ImageNoise(range(len(label)))
    other = another_class(label, 3, noise)
    assert (other != label).all()
    assert torch.equal(other // 3, label // 3)
    second = (other - label) % 3 == 2
    assert second.float().mean() == pytest.approx(0.5, abs=0.02)
    values = torch.tensor([0, 1, 2, 3, 4, 5, -1])
    assert another_class(values, 2, ImageNoise(range(7))).tolist() == [1, 0, 3, 2, 5, 4, -1]


def test_the_true_densities_are_where_the_classification_loss_is_least() -> None:
    """Over all points of a small space, their classes and the others: at log p(y | c) its gradient vanishes."""
    points, classes, temperature = 5, 3, torch.tensor(0.01)
    density = torch.rand(classes, points, generator=torch.Generator().manual_seed(0)).softmax(dim=1).double()

    def gradient(log_density: Tensor) -> Tensor:
        f = (temperature * log_density).requires_grad_()
        expected = sum(
            (density[true] * classification_loss(f[true], f[other], temperature)).sum()
            for true in range(classes)
            for other in range(classes)
            if other != true
        )
        return torch.autograd.grad(expected, f)[0]

    of_each_point = torch.randn(
        points, generator=torch.Generator().manual_seed(1)
    ).double()  # is the same for all classes
    assert gradient(density.log() + of_each_point).abs().max() < 1e-12
    assert gradient(density.log() * 1.1).abs().max() > 1e-3


def test_the_classification_loss_is_added_with_its_weight_and_changes_no_draw() -> None:
    def losses(weight: float, dropout: float = 0.0) -> tuple[Losses, CDRL]:
        model = tiny_model(tiny_config(initializer={"dropout": 0.0}))
        x0 = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        networks = Networks(model.energy, model.initializer, model.energy.fold().detach())
        settings = LossSettings(2, dropout, classification_weight=weight, answers=10)
        return cooperative_losses(x0, torch.arange(6), ImageNoise(range(6)), networks, model.schedule, settings), model

    (plain, _), (once, model), (twice, _) = losses(0), losses(1), losses(2)
    assert plain.classification is None
    assert once.classification is not None
    added = (once.energy - plain.energy).item()
    assert added == pytest.approx(once.classification.item(), abs=1e-6)
    assert (twice.energy - plain.energy).item() == pytest.approx(2 * added, abs=1e-6)
    assert once.initializer.item() == pytest.approx(plain.initializer.item(), rel=1e-5)
    # By hand.
    pair = once.chain.pair
    other = another_class(pair.label, 10, _after(once.chain.pair, model.schedule, steps=2))
    logsnr, temperature = model.schedule.logsnr[pair.level], model.schedule.temperature[pair.level]
    f_true, f_other = (model.energy(pair.y, logsnr, label) for label in (pair.label, other))
    probability = torch.softmax(torch.stack([f_true, f_other]).double() / temperature, dim=0)[0].clamp(min=1e-300)
    of_each = torch.where(probability > 1e-290, -temperature * probability.log(), f_other - f_true)
    expected = (model.schedule.loss_weight[pair.level] * of_each).mean()
    assert once.classification.item() == pytest.approx(expected.item(), rel=1e-4)
    # A dropped class is told from none.
    dropped, model = losses(1, dropout=1.0)
    without, model_without = losses(0, dropout=1.0)
    for loss in (dropped, without):
        loss.energy.backward()
    for one, other_one in zip(model.energy.parameters(), model_without.energy.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other_one.grad, rtol=1e-3, atol=1e-5)


def _after(pair: NoisedPair, schedule: NoiseSchedule, steps: int) -> ImageNoise:
    """The noise of images 0, 1, …, when a training batch has drawn for pair, proposal and chain."""
    noise = ImageNoise(range(len(pair.level)))
    assert torch.equal(noise.integers(schedule.num_levels), pair.level)
    noise.uniform()
    for _ in range(2 + steps):
        noise.normal(pair.y.shape[1:])
    return noise


def test_without_two_classes_there_is_nothing_to_tell_apart() -> None:
    config = tiny_config(training={"classification_weight": 1.0})
    with pytest.raises(
        ConfigError, match=r"training\.classification_weight tells .*: expected two or more, the data have 1"
    ):
        LossSettings.from_config(config, 1)
    assert LossSettings.from_config(config, 10).answers == 10
    attributes = config.model_copy(update={"data": config.data.model_copy(update={"labels": "attributes"})})
    assert LossSettings.from_config(attributes, 6).answers == 2
