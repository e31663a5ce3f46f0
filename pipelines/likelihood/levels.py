"""The path from standard normal noise down to a level of a model, segment by segment, as `annealing` runs along it.

Segment t leads from the density of level t + 1 to that of level t. Both are taken in the coordinates in which they
overlap, u = x_{t+1} = y_t + sigma_{t+1} eps: the start is the density of x_{t+1} = y_{t+1} / alpha_y_{t+1}, that of the
highest segment N(0, I), whose log Z is known; the end is the density of y_t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl.model import CDRL, ConditionedCDRL
from cdrl.sampling.kernels import Target, with_gradient
from cdrl.schedule import NoiseSchedule
from pipelines.likelihood.annealing import Segment, Spread

_DIRECTIONS = 512
"""Principal directions that are told apart at most; the others are taken for one."""
_RAYS, _TURNS, _FAR = 32, 30, 1e4


def clean_spread(grids: Tensor) -> Spread:
    """Covariance of clean grids [N, *shape], by their principal directions: as many as N and memory allow."""
    flat = grids.flatten(1).double()
    offset = flat - flat.mean(dim=0)
    count, dimension = offset.shape
    rank = min(dimension, count - 1, _DIRECTIONS)
    _, singular, directions = torch.linalg.svd(offset, full_matrices=False)
    variances = singular[:rank].square() / max(count - 1, 1)
    total = float(offset.square().sum()) / max(count - 1, 1)
    beyond = max(0.0, total - float(variances.sum())) / max(dimension - rank, 1)
    return Spread(directions[:rank].T.float().contiguous(), variances.float(), beyond)


def tail_slope(model: CDRL, label: int, level: int, seed: int = 0) -> float:
    """Largest slope of f(y_t) that is found far from all data, in nats a unit of distance outward.

    Networks of leaky ReLU or SiLU units grow linearly along every ray in the end. Where some ray rises, exp(f) has no
    finite integral, and no log Z. Directions are random ones, turned uphill.
    """
    conditioned = model.conditioned(label)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(_RAYS, *model.shape, generator=generator).to(device)
    target = with_gradient(lambda y: conditioned.log_density(y, level))
    slope = -math.inf
    for _ in range(_TURNS):
        length = directions.flatten(1).norm(dim=1).view(-1, *[1] * len(model.shape))
        directions = directions / length
        value, gradient = target(_FAR * directions)
        # Between two places far apart: features that oscillate have gradients of any size, but do not grow.
        rise = target(2 * _FAR * directions)[0] - value
        slope = max(slope, float(rise.max()) / _FAR)
        size = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * len(model.shape))
        directions = directions + 0.1 * gradient / size
    return slope


def noised_spread(clean: Spread, schedule: NoiseSchedule, level: int, scale: float) -> Spread:
    """Spread of ``scale`` x_t, from that of clean grids."""
    signal, noise = float(schedule.alpha_bar[level]) ** 2, float(schedule.sigma_bar[level]) ** 2
    variances = scale**2 * (signal * clean.variances + noise)
    return Spread(clean.directions, variances, scale**2 * (signal * clean.rest + noise))


@dataclass(frozen=True)
class LevelPath:
    """The path of one model.

    Attributes:
        model: with a schedule and energies.
        labels: class id of each chain, int64 [N]; -1 for no class.
        clean: spread of clean grids, which tells the moves how wide each level is.
        lowest: the level at which the path ends.
    """

    model: CDRL
    labels: Tensor
    clean: Spread
    lowest: int = 0

    @property
    def dimension(self) -> int:
        """D, numbers of a grid."""
        return math.prod(self.model.shape)

    @property
    def segments(self) -> range:
        """Numbers of the segments in the order of sampling: T - 1 … ``lowest``."""
        return range(self.model.schedule.num_levels - 1, self.lowest - 1, -1)

    def between(self, level: int) -> float:
        """Factor from the coordinates at the end of segment ``level`` to those at the next one's start: x_t / y_t."""
        return 1 / float(self.model.schedule.alpha_y[level])

    def segment(self, level: int) -> Segment:
        """Segment t = ``level``, from the density of level t + 1 to that of level t."""
        conditioned: dict[tuple[int | None, int | None], ConditionedCDRL] = {}
        schedule = self.model.schedule

        def of(chains: slice) -> ConditionedCDRL:
            key = chains.start, chains.stop
            if key not in conditioned:
                conditioned[key] = self.model.conditioned(self.labels[chains])
            return conditioned[key]

        def start(chains: slice) -> Target:
            if level == schedule.num_levels - 1:
                return standard_normal
            return stretched(level_target(of(chains), level + 1), float(schedule.alpha_y[level + 1]))

        def end(chains: slice) -> Target:
            return level_target(of(chains), level)

        device = self.labels.device
        scale = float(schedule.alpha_y[level])
        spreads = self._spread(level + 1, 1.0), self._spread(level, scale)
        if level == schedule.num_levels - 1:
            flat = torch.ones_like(self.clean.variances)
            spreads = Spread(self.clean.directions, flat, 1.0), spreads[1]
        return Segment(start, end, *(spread.to(device) for spread in spreads))

    def _spread(self, level: int, scale: float) -> Spread:
        """Spread of ``scale`` x_t."""
        return noised_spread(self.clean, self.model.schedule, level, scale)


def standard_normal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Log density [N] of N(0, I) at grids [N, *shape], and its gradient."""
    return -x.flatten(1).square().sum(dim=1) / 2 - x[0].numel() * math.log(2 * math.pi) / 2, -x


def level_target(conditioned: ConditionedCDRL, level: int) -> Target:
    """Unnormalized log density of y_t, with its gradient."""
    return with_gradient(lambda y: conditioned.log_density(y, level))


def stretched(target: Target, factor: float) -> Target:
    """A target as one of x = y / ``factor``: its log density at y, without the constant of the change of volume."""

    def of_x(x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = target(factor * x)
        return value, factor * gradient

    return of_x
