"""The CDRL model: a noise schedule, an energy and an initializer; log densities and proposals at every level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cdrl.arguments import check_grids, check_kind, plain, shown, whole_number, whole_numbers
from cdrl.config import Config
from cdrl.networks import EnergyNetwork, FoldedEnergy, PointInitializer, UNetInitializer
from cdrl.networks.energy import EnergyCondition
from cdrl.schedule import NoiseSchedule, per_image

Level = int | Tensor
"""One level for all images, or one per image (int64 [N])."""
Label = int | Sequence[int | None] | Tensor | None
"""Class ids 0 … C-1, one for all images or one per image; -1 or None is the null class."""


class CDRL(nn.Module):
    """Energies over the levels t = 0 … T-1 and the initializers that propose their samples.

    Args:
        initializer: None for chains that start at x_{t+1}; ``schedule.proposal_std`` is 0 then.
        shape: shape of one image, latent or point.
        num_classes: number of classes without the null class; 0 for an unconditional model.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        energy: EnergyNetwork,
        initializer: UNetInitializer | PointInitializer | None,
        shape: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.schedule, self.energy, self.initializer = schedule, energy, initializer
        self.shape, self.num_classes = tuple(shape), num_classes

    @classmethod
    def from_config(cls, config: Config, shape: Sequence[int], num_classes: int = 0) -> CDRL:
        """New networks with random weights for grids (three dimensions) or points (one)."""
        energy, initializer = new_networks(config, shape, num_classes)
        schedule = NoiseSchedule.from_config(
            config.schedule,
            gaussian_reference=config.energy.reference == "gaussian",
            initializer=initializer is not None,
        )
        return cls(schedule, energy, initializer, shape, num_classes)

    @classmethod
    def without_weights(cls, config: Config, shape: Sequence[int], num_classes: int = 0) -> CDRL:
        """As `from_config`, but on torch's meta device: networks of any size take no memory, and wait for weights."""
        schedule = NoiseSchedule.from_config(
            config.schedule,
            gaussian_reference=config.energy.reference == "gaussian",
            initializer=config.initializer is not None,
        )
        with torch.device("meta"):
            return cls(schedule, *new_networks(config, shape, num_classes), shape, num_classes)

    def log_density(self, y: Tensor, level: Level, label: Label = None) -> Tensor:
        """log p(y_t) up to a constant a level, [N] from y [N, *shape]: f-hat / temperature_t (eq. 1, Appendix A.2).

        For many evaluations under one condition, `conditioned` is faster.
        """
        return self.conditioned(label, gradients=True).log_density(y, level)

    def propose(self, x_next: Tensor, level: Level, label: Label = None) -> Tensor:
        """Mean of the proposal of y_t from x_{t+1} [N, *shape] (eq. 6); x_{t+1} itself without an initializer."""
        return self.conditioned(label, gradients=True).propose(x_next, level)

    def conditioned(
        self, label: Label = None, *, gradients: bool = False, dtype: torch.dtype = torch.float32
    ) -> ConditionedCDRL:
        """Fix the class: `log_density(y, level)` and `propose(x_next, level)`, the two callables of the sampler.

        Without ``gradients`` to the parameters the energy is folded once, here, into a copy in ``dtype``.
        """
        folded = self.energy.fold()
        return ConditionedCDRL(self, folded if gradients else folded.detach(dtype), label)

    def level_of(self, level: int) -> int:
        """A level for which the model has an energy, as an int.

        Raises:
            TypeError: it is no number.
            ValueError: it is not whole, or there is no such level.
        """
        levels, number = self.schedule.num_levels, whole_number("level", level)
        if not 0 <= number < levels:
            raise ValueError(f"level: this model has {levels} levels, 0 … {levels - 1}; found {number}")
        return number

    def labels(self, label: Label, count: int, device: torch.device) -> Tensor:
        """Any accepted form of label as class ids, int64 [count].

        Raises:
            TypeError: what was given is no number.
            ValueError: a number is not whole, there is no such class, or not one for each image.
        """
        ids = _whole(label)
        if ids.ndim > 1 or (ids.ndim == 1 and len(ids) != count):
            raise ValueError(f"label: expected one class id or {count} of them, found shape {list(ids.shape)}")
        # Elsewhere a look at the values would wait for the device; what lies there has been looked at before.
        is_seen = ids.device.type == "cpu" and ids.numel()
        if is_seen and (int(ids.min()) < -1 or int(ids.max()) >= self.num_classes):
            known = f"-1 … {self.num_classes - 1}" if self.num_classes else "only -1 (the model is unconditional)"
            raise ValueError(f"label: class ids are {known}, found {sorted({int(i) for i in ids.reshape(-1)})}")
        return ids.to(device, torch.int64).expand(count)


def _whole(label: Label) -> Tensor:
    """Class ids as a tensor of whole numbers of the shape they came in, -1 for None."""
    if isinstance(label, str | bytes):
        raise TypeError(f"label: class ids are whole numbers, found {shown(label)}")
    several = isinstance(label, Sequence)
    values = [-1 if each is None else each for each in (label if isinstance(label, Sequence) else [label])]
    truth = any(isinstance(each, bool | np.bool_) for each in values)
    try:
        given = torch.as_tensor(values if several else values[0])
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"label: class ids are whole numbers, found {shown(label)}") from None
    if given.dtype == torch.bool or truth or given.is_complex():
        raise TypeError(f"label: class ids are whole numbers, found {shown(label)}")
    if given.is_floating_point() and given.numel():
        raise ValueError(f"label: class ids are whole numbers, found {given.reshape(-1).tolist()}")
    return given


def new_networks(
    config: Config, shape: Sequence[int], num_classes: int
) -> tuple[EnergyNetwork, UNetInitializer | PointInitializer | None]:
    """An energy and an initializer with random weights; None for a configuration without initializer.

    Raises:
        TypeError: what was given is no configuration, or the shape or the classes are no numbers.
        ValueError: a network's resolutions do not fit the grid, or there is no grid of this shape.
    """
    check_kind("config", config, Config, "a cdrl.Config")
    whole_number("num_classes", num_classes, least=0)
    if len(sizes := whole_numbers("shape", shape, "(1, 8, 8)")) not in (1, 3) or min(sizes) < 1:
        raise ValueError(f"shape: expected (channels, height, width), or (dimensions,) of points, found {shown(shape)}")
    energy = EnergyNetwork(config.energy, shape, num_classes)
    network = UNetInitializer if len(shape) == 3 else PointInitializer
    settings = config.initializer
    if settings is None:
        return energy, None
    return energy, network(settings, shape, num_classes if settings.conditional else 0)


def log_density(f_hat: Tensor, y: Tensor, schedule: NoiseSchedule, level: Level) -> Tensor:
    """Turn the network's output f-hat [N] at y [N, *shape] into the log density up to a constant, [N].

    f-hat / temperature_t, s_t^2 in the paper (Appendix A.2), on top of the reference measure: flat, or
    N(0, alpha_y^2 I).
    """
    value = f_hat / schedule.temperature[level]
    if schedule.gaussian_reference:
        value = value - y.flatten(1).square().sum(dim=1) / (2 * schedule.alpha_y[level] ** 2)
    return value


def proposal_mean(output: Tensor, x_next: Tensor, schedule: NoiseSchedule, level: Level, predicts: str) -> Tensor:
    """Turn the initializer's output into the mean of y_t, [N, *shape].

    With the expectation of x_0 or of the noise in x_{t+1} = alpha_bar x_0 + sigma_bar eps for an output, it is the
    expectation of y_t given x_{t+1}: that of q(x_t | x_{t+1}, x_0), linear in x_0 (Ho et al., 2020, eq. 7 and 11).

    Args:
        output: the network's output, [N, *shape].
        predicts: ``y``, ``x0`` or ``epsilon``.
    """
    if predicts == "y":
        return output

    def at(values: Tensor) -> Tensor:
        return per_image(values, x_next)

    alpha, variance = at(schedule.alpha_step[level]), at(schedule.sigma_step[level] ** 2)
    sigma_next = at(schedule.sigma_bar[level + 1])
    if predicts == "x0":
        alpha_bar, sigma_bar = at(schedule.alpha_bar[level]), at(schedule.sigma_bar[level])
        x = (alpha * sigma_bar**2 * x_next + alpha_bar * variance * output) / sigma_next**2
    else:
        x = (x_next - variance / sigma_next * output) / alpha
    return at(schedule.alpha_y[level]) * x


class ConditionedCDRL:
    """A CDRL with fixed class: `log_density(y, level)` and `propose(x_next, level)`, efficient in long chains."""

    def __init__(self, model: CDRL, energy: FoldedEnergy, label: Label) -> None:
        self.model, self.energy, self.label = model, energy, label
        # Moved once: on a GPU each step of a chain would copy the tables anew.
        self._schedule = model.schedule.to(next(model.parameters()).device)
        self._memo: dict[tuple[int, int], EnergyCondition] = {}
        self._labels: dict[int, Tensor] = {}

    def log_density(self, y: Tensor, level: Level) -> Tensor:
        """Log density f(y, level) up to a constant, [N], of y [N, *shape]."""
        self._check("y", y, level)
        return log_density(self.energy(y, self._condition(y, level)), y, self._schedule, level)

    def propose(self, x_next: Tensor, level: Level) -> Tensor:
        """Mean of the proposal of y_t from x_next, both [N, *shape]."""
        self._check("x_next", x_next, level)
        initializer = self.model.initializer
        if initializer is None:
            return x_next
        labels = self._labels_of(x_next)
        logsnr = self._schedule.logsnr[level + 1].expand(len(x_next))
        output = initializer(x_next.to(next(initializer.parameters()).dtype), logsnr, labels)
        return proposal_mean(output, x_next, self._schedule, level, initializer.predicts)

    def _condition(self, y: Tensor, level: Level) -> EnergyCondition:
        key = (level, len(y)) if isinstance(level, int) else None
        if key in self._memo:
            return self._memo[key]
        labels = self._labels_of(y)
        logsnr = self._schedule.logsnr[level].expand(len(y))
        condition = self.energy.condition(logsnr, labels)
        if key is not None and not condition.head.requires_grad:
            self._memo[key] = condition
        return condition

    def _labels_of(self, grids: Tensor) -> Tensor:
        """Class ids of a batch, moved to its device once: in a chain each move would copy them anew."""
        count = len(grids)
        if count not in self._labels:
            self._labels[count] = self.model.labels(self.label, count, grids.device)
        return self._labels[count]

    def _check(self, name: str, grid: Tensor, level: Level) -> None:
        check_grids(name, grid, self.model.shape)
        if not isinstance(level, Tensor) or level.ndim == 0:
            self.model.level_of(plain(level))
            return
        if level.dtype != torch.int64 or len(level) != len(grid) or level.ndim > 1:
            raise ValueError(f"level: expected one for each image, int64 [{len(grid)}], found {shown(level)}")
        # Elsewhere a look at the values would wait for the device.
        if level.device.type == "cpu":
            for bound in (int(level.min()), int(level.max())):
                self.model.level_of(bound)
