"""Algorithm 1: one batch in, the two losses out; and, apart from them, what monitors read of the same batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cdrl.config import Config, ConfigError, InitializerConfig
from cdrl.model import proposal_mean
from cdrl.networks import FoldedEnergy
from cdrl.sampling.kernels import Position, langevin_log_ratio
from cdrl.sampling.noise import ImageNoise
from cdrl.schedule import NoiseSchedule, per_image
from cdrl.training.chains import ChainStart, RunChain, run_chain

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(grid [N, *shape], logsnr [N], label [N]) -> f-hat [N] or a grid [N, *shape]."""


@dataclass(frozen=True)
class Networks:
    """The two networks in training, and the energy as the chain uses it.

    Attributes:
        energy: learns from the energy loss; called once a batch.
        initializer: learns from the initializer loss; called once a batch. None: chains start at x_{t+1}.
        chain_energy: the energy folded and detached, so that no chain costs a gradient of parameters.
        run_chain: how the chains are run.
    """

    energy: Network
    initializer: Network | None
    chain_energy: FoldedEnergy
    run_chain: RunChain = run_chain


@dataclass(frozen=True)
class LossSettings:
    """What the losses depend on beside networks, schedule and noise.

    Attributes:
        langevin_steps: K.
        label_dropout: probability with which each class id is replaced by the null class.
        pairs: x_{t+1} has the noise of x_t (``shared_noise``, eq. 9), or one more step's (``independent_noise``).
        predicts: what the initializer's output stands for, see `proposal_mean`.
        target: what the proposal is regressed on: ``refined``, where the chain ends, or ``data``, the true y_t.
        classification_weight: weight of the energy loss's second term, see `classification_loss`.
        answers: class ids come in blocks of so many, of which one is true: 2 where they are values of attributes.
    """

    langevin_steps: int
    label_dropout: float = 0.0
    pairs: str = "shared_noise"
    predicts: str = "y"
    target: str = "refined"
    classification_weight: float = 0.0
    answers: int = 1

    @classmethod
    def from_config(cls, config: Config, num_classes: int) -> LossSettings:
        """The settings of a configuration for a model of ``num_classes``.

        Raises:
            ConfigError: there are no two classes to be told from each other.
        """
        training, initializer = config.training, config.initializer or InitializerConfig()
        if training.classification_weight and num_classes < 2:
            raise ConfigError(
                f"training.classification_weight tells classes apart: expected two or more, the data have {num_classes}"
            )
        return cls(
            langevin_steps=training.langevin_steps,
            label_dropout=training.label_dropout,
            pairs=training.pairs,
            predicts=initializer.predicts,
            target=initializer.target,
            classification_weight=training.classification_weight,
            answers=2 if config.data.labels == "attributes" else num_classes,
        )


@dataclass(frozen=True)
class NoisedPair:
    """A batch at two neighbouring noise levels, t of each image and t + 1."""

    level: Tensor
    """t, uniform on 0 … T-1: int64 [N]."""
    label: Tensor
    """Class ids, some of them dropped to -1, the null class: int64 [N]."""
    y: Tensor
    """alpha_{t+1} x_t, [N, *shape]."""
    x_next: Tensor
    """x_{t+1}, [N, *shape]."""


@dataclass(frozen=True)
class Chain:
    """What a batch's losses were made of, without gradients: `diagnose` reads it."""

    pair: NoisedPair
    start: Tensor
    """The noised proposal, [N, *shape]."""
    before_end: Position
    """Where the last Langevin step began."""
    end: Position
    """The refined sample."""
    f_refined: Tensor
    f_data: Tensor


@dataclass(frozen=True)
class Losses:
    """The losses of a batch, scalars with gradients, and what they were made of."""

    energy: Tensor
    initializer: Tensor | None
    """None where there is no initializer."""
    classification: Tensor | None
    """The part of ``energy`` that tells classes apart, before its weight; None where that is 0."""
    chain: Chain

    def values(self) -> dict[str, Tensor]:
        """Losses by the name of their metric, detached."""
        losses = {
            "energy_loss": self.energy,
            "initializer_loss": self.initializer,
            "classification_loss": self.classification,
        }
        return {name: loss.detach() for name, loss in losses.items() if loss is not None}


def cooperative_losses(
    x0: Tensor, label: Tensor, noise: ImageNoise, networks: Networks, schedule: NoiseSchedule, settings: LossSettings
) -> Losses:
    """Losses of the energy (eq. 7) and of the initializer (eq. 8, without its level weights): Algorithm 1.

    Args:
        x0: clean grids [N, *shape].
        label: class ids [N], -1 for null.
        noise: one stream an image.
    """
    # A pair at levels t and t + 1 (eq. 9).
    pair = noised_pair(x0, label, noise, schedule, settings)
    level, x_next, y = pair.level, pair.x_next, pair.y
    logsnr = schedule.logsnr[level]

    # The initializer's proposal with its noise (eq. 6), or x_{t+1} itself.
    proposed = x_next
    if networks.initializer is not None:
        output = networks.initializer(x_next, schedule.logsnr[level + 1], pair.label)
        mean = proposal_mean(output, x_next, schedule, level, settings.predicts)
        proposed = mean + per_image(schedule.proposal_std[level], x0) * noise.normal(x0.shape[1:])

    # K Langevin steps from there towards p(y_t | x_{t+1}) (eq. 3, 5).
    start = ChainStart(networks.chain_energy, level, pair.label, proposed.detach(), x_next)
    before_end, end = networks.run_chain(start, noise, schedule, settings.langevin_steps)
    refined = end.y

    # The energy tells refined samples from true ones (eq. 7), and a true one's class from another, all as one batch.
    grids, labels = [refined, y], [pair.label, pair.label]
    if settings.classification_weight:
        grids.append(y)
        labels.append(another_class(pair.label, settings.answers, noise))
    f = networks.energy(torch.cat(grids), logsnr.repeat(len(grids)), torch.cat(labels))
    f_refined, f_data, *f_other = f.chunk(len(grids))
    energy_loss = (schedule.loss_weight[level] * (f_refined - f_data)).mean()
    classification = None
    if f_other:
        of_each = classification_loss(f_data, f_other[0], schedule.temperature[level])
        classification = (schedule.loss_weight[level] * of_each).mean()
        energy_loss = energy_loss + settings.classification_weight * classification

    # The initializer learns where its own chains end (eq. 8).
    initializer_loss = None
    if networks.initializer is not None:
        error = (refined if settings.target == "refined" else y) - proposed
        initializer_loss = error.flatten(1).square().sum(dim=1).mean()

    chain = Chain(pair, start.y, before_end, end, f_refined.detach(), f_data.detach())
    return Losses(energy_loss, initializer_loss, classification, chain)


def another_class(label: Tensor, answers: int, noise: ImageNoise) -> Tensor:
    """A class at random of those that the image might have had instead: int64 [N] from [N]; null stays null.

    Args:
        answers: class ids come in blocks of so many, 2 or more, of which one is true.
    """
    offset = (label + 1 + noise.integers(answers - 1)) % answers
    return torch.where(label < 0, label, label - label % answers + offset)


def classification_loss(f_true: Tensor, f_other: Tensor, temperature: Tensor) -> Tensor:
    """-log of the probability that the energies give the true of two classes, in the units of f-hat: [N] from [N].

    log p(y_t | c) - log p(y_t | c') is what both this term and the likelihood ask of two classes' energies: at
    the optimum of either it tells c from c' as well as y_t allows. This one learns it without a chain (conditional
    noise contrastive estimation with the class as its noise; Ma and Collins, 2018). Where the class was dropped both
    energies are the same and the term is constant.

    Args:
        temperature: s_t^2 of each image, by which f-hat is divided to be a log density.
    """
    return temperature * F.softplus((f_other - f_true) / temperature)


def noised_pair(
    x0: Tensor, label: Tensor, noise: ImageNoise, schedule: NoiseSchedule, settings: LossSettings
) -> NoisedPair:
    """Clean grids [N, *shape] at a random level and the next one (eq. 9), and their class ids with some dropped."""
    level = noise.integers(schedule.num_levels)
    label = torch.where(noise.uniform() < settings.label_dropout, -1, label)
    epsilon = noise.normal(x0.shape[1:])

    def at(values: Tensor) -> Tensor:
        return per_image(values, x0)

    alpha_y = schedule.alpha_y[level]
    y = at(alpha_y * schedule.alpha_bar[level]) * x0 + at(alpha_y * schedule.sigma_bar[level]) * epsilon
    if settings.pairs == "shared_noise":
        x_next = at(schedule.alpha_bar[level + 1]) * x0 + at(schedule.sigma_bar[level + 1]) * epsilon
    else:
        one_more = noise.normal(x0.shape[1:])
        x_next = at(schedule.alpha_step[level] / alpha_y) * y + at(schedule.sigma_step[level]) * one_more
    return NoisedPair(level, label, y, x_next)


@dataclass(frozen=True)
class Diagnostics:
    """Diagnostics for the monitors, one value an image ([N], detached); NaN where not measured."""

    level: Tensor
    energy_gap: Tensor
    """f-hat(refined) - f-hat(data): 0 on average where the energy fits."""
    gradient_norm: Tensor
    """Root mean square over the grid of s_t grad f where the chain's last step began; the noise's is 1."""
    displacement: Tensor
    """Root mean square over the grid of refined - proposed, in units of s_t."""
    magnitude: Tensor
    """|f-hat(data)|, whose growth without bound is a sign of trouble."""
    reach: Tensor
    """Largest absolute value of the refined sample, over the true one's, or over alpha_y where that is larger.

    alpha_y is the standard deviation of y_t where data are standardized: values near 0 are no measure of a scale.
    """
    acceptance: Tensor
    """Probability that Metropolis and Hastings would have let the chain's last step pass: 1 for steps short enough."""
    initializer_share: Tensor
    """Share of the way from x_{t+1} to where the chain ended that the noised proposal had gone.

    <proposed - x_{t+1}, refined - x_{t+1}> / |refined - x_{t+1}|^2: the chain's own share is the rest, 1 less this.
    x_{t+1} = y_t + sigma eps needs no scaling to be compared with y_t, and is where a chain without an initializer
    begins: that one has a share of 0, a proposal that the chain leaves where it is has 1.
    """


@torch.no_grad()
def diagnose(chain: Chain, schedule: NoiseSchedule, *, measure_acceptance: bool = False) -> Diagnostics:
    """Diagnostics of a batch from what its losses were made of.

    Args:
        measure_acceptance: spend one more gradient of the chain's target on ``acceptance``.
    """
    pair, start, before_end, refined = chain.pair, chain.start, chain.before_end, chain.end.y
    step_size, precision = schedule.step_size[pair.level], schedule.precision[pair.level]
    acceptance = torch.full_like(step_size, math.nan)
    if measure_acceptance:
        acceptance = langevin_log_ratio(before_end, chain.end, step_size).exp().clamp(max=1)
    scale = torch.maximum(pair.y.flatten(1).abs().amax(dim=1), schedule.alpha_y[pair.level])
    way, proposed_way = (refined - pair.x_next).flatten(1), (start - pair.x_next).flatten(1)
    slope = before_end.gradient + per_image(precision, start) * (before_end.y - pair.x_next)
    return Diagnostics(
        level=pair.level,
        energy_gap=chain.f_refined - chain.f_data,
        gradient_norm=_rms(slope) * step_size,
        displacement=_rms(refined - start) / step_size,
        magnitude=chain.f_data.abs(),
        reach=refined.flatten(1).abs().amax(dim=1) / scale,
        acceptance=acceptance,
        initializer_share=(proposed_way * way).sum(dim=1) / way.square().sum(dim=1),
    )


@dataclass(frozen=True)
class Measurements:
    """Losses and diagnostics that an update measured in this process."""

    losses: dict[str, Tensor]
    """Each loss by the name of its metric, one value a micro-batch: [M]."""
    diagnostics: Diagnostics
    """One value an image of all micro-batches."""

    @classmethod
    def of(cls, losses: Sequence[Losses], diagnostics: Sequence[Diagnostics]) -> Measurements:
        """Combine the measurements of all micro-batches of an update."""
        values = [batch.values() for batch in losses]
        fields = [field.name for field in dataclasses.fields(Diagnostics)]
        return cls(
            {name: torch.stack([batch[name] for batch in values]) for name in values[0]},
            Diagnostics(**{name: torch.cat([getattr(batch, name) for batch in diagnostics]) for name in fields}),
        )


def _rms(grid: Tensor) -> Tensor:
    return grid.flatten(1).square().mean(dim=1).sqrt()
