"""A lower bound of the likelihood under the model that is sampled: noise, the highest level, conditionals below it.

Sampling draws x_{T-1} from the highest level's energy and then y_t given x_{t+1} from the conditional of each level
below, p(y_t | x_{t+1}) proportional to exp(f(y_t) - |y_t - x_{t+1}|^2 / (2 sigma^2)) (eq. 3). With q the noising of an
image, x_1 … x_{T-1},

    log p(x_0) >= E_q [ f(x_{T-1}) - log Z_{T-1} + sum_t f(y_t) + D log alpha_y_t - log G_t(x_{t+1}) ],
    G_t(x) = integral of exp(f(y)) N(y; x, sigma^2 I) dy,

as of any latent-variable model: the Gaussians of p and q cancel. Training fits these conditionals, not level 0's
density as a whole. G_t is a normalizer for each image, and is annealed from N(x_{t+1}, sigma^2 I).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cdrl.runs.progress import progress_bar
from cdrl.runs.run import load_tensors, save_tensors
from cdrl.sampling.kernels import Kernel, Target, hmc, recovery
from cdrl.sampling.noise import ImageNoise, derive_seed
from cdrl.schedule import NoiseSchedule
from cdrl.training.engine import World, barrier
from cdrl.training.interruption import Interrupted, stop_requests
from pipelines.likelihood.annealing import Ladder, Pilot, Segment, Spread, anneal, equilibrate, pilot_run
from pipelines.likelihood.levels import LevelPath, level_target, noised_spread
from pipelines.likelihood.normalizer import Effort, load_pilot, save_pilot

_PILOT_IMAGES, _PILOT_CHAINS = 16, 8
_BATCH = 256


@dataclass(frozen=True)
class Bounds:
    """The bound for N images at the levels T-2 … 0, with the estimates of log G_t from both directions.

    Attributes:
        value: f(y_t) + D log alpha_y_t, float64 [T-1, N], from level T-2 down.
        lower, upper: estimates of log G_t(x_{t+1}), [T-1, N].
        top: f(x_{T-1}), [N].
    """

    value: Tensor
    lower: Tensor
    upper: Tensor
    top: Tensor

    def bound(self, log_z: float, *, end: str) -> Tensor:
        """The bound on log p(x_0), [N]: at least (with the ``upper`` estimates of G) or at most (``lower``)."""
        log_g = self.upper if end == "upper" else self.lower
        return self.top - log_z + (self.value - log_g).sum(dim=0)


def trajectory(schedule: NoiseSchedule, x: Tensor, noise: ImageNoise) -> list[Tensor]:
    """x_0 … x_{T-1} of the noising, each from the one before with noise of its own: x_{t+1} = alpha x_t + sigma eps."""
    states = [x]
    for level in range(schedule.num_levels - 1):
        epsilon = noise.normal(x.shape[1:])
        states.append(float(schedule.alpha_step[level]) * states[-1] + float(schedule.sigma_step[level]) * epsilon)
    return states


def conditional_segment(target_of: Callable[[slice], Target], x_next: Tensor, sigma: float, spread: Spread) -> Segment:
    """From N(x_{t+1}, sigma^2 I) to exp(f(y)) times it, for each image its own.

    Args:
        target_of: f of some of the images, with its gradient.
        x_next: [N, *shape].
        spread: of y_t in its marginal.
    """
    dimension = x_next[0].numel()
    constant = dimension * math.log(sigma * math.sqrt(2 * math.pi))

    def start(chains: slice) -> Target:
        mean = x_next[chains]

        def gaussian(y: Tensor) -> tuple[Tensor, Tensor]:
            offset = (y - mean) / sigma
            return -offset.flatten(1).square().sum(dim=1) / 2 - constant, -offset / sigma

        return gaussian

    def end(chains: slice) -> Target:
        conditional = recovery(target_of(chains), x_next[chains], torch.tensor(sigma**-2, device=x_next.device))

        def normalized(y: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = conditional(y)
            return value - constant, gradient

        return normalized

    wide = Spread(spread.directions, torch.full_like(spread.variances, sigma**2), sigma**2)
    posterior = Spread(spread.directions, 1 / (1 / spread.variances + sigma**-2), 1 / (1 / spread.rest + sigma**-2))
    return Segment(start, end, wide, posterior)


class ChainBound:
    """Estimation of the bound for some images; what is finished is kept in a folder and not done again.

    Args:
        path: its labels are those of the images, [N]; the normalizer of its highest level is not estimated here.
        effort: ``temperatures`` are those of a chain over the levels T-2 … 0, and ``chains`` is their number for each
            image and direction.
        folder: of these images under this effort on this model, and of nothing else.
        world: the processes that work together; each calls `run`.
    """

    def __init__(self, path: LevelPath, effort: Effort, folder: Path, world: World) -> None:
        self.path, self.effort, self.folder, self.world = path, effort, folder, world
        self._kernel: Kernel = hmc(effort.leapfrog_steps)

    def run(self, x: Tensor) -> Bounds:
        """Bounds of images x_0 [N, *shape], which have the noise of level 0 upon them.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM; what is finished is kept.
        """
        schedule = self.path.model.schedule
        states = trajectory(schedule, x, self._noise("noising", 0, range(len(x)), 1))
        levels = self.path.segments[1:]
        moves = 2 * self.effort.temperatures + len(levels) * self.effort.equilibration
        total = moves * len(x) * self.effort.chains
        with (
            stop_requests() as stop_requested,
            progress_bar(total, "anneal conditionals", unit="move", shown=self.world.is_main) as bar,
        ):

            def moved(count: int) -> None:
                bar.update(count)
                if stop_requested():
                    raise Interrupted(f"stopped; what is finished is kept in {self.folder}: the same command goes on")

            pilots = {level: self._pilot(level, states) for level in levels}
            whole = sum(pilot.lengths[-1] for pilot in pilots.values())
            found = []
            for level, pilot in pilots.items():
                ladder = pilot.ladder(max(8, round(self.effort.temperatures * pilot.lengths[-1] / whole)))
                found.append(self._log_g(level, ladder, pilot.step_sizes[-1], states, moved))
        values = []
        for level in levels:
            alpha_y = float(schedule.alpha_y[level])
            values.append(self._log_density(alpha_y * states[level], level) + x[0].numel() * math.log(alpha_y))
        lower, upper = (torch.stack(each).cpu() for each in zip(*found, strict=True))
        top = self.path.segments[0]
        return Bounds(torch.stack(values).cpu(), lower, upper, self._log_density(states[top], top).cpu())

    def _segment(self, level: int, x_next: Tensor, labels: Tensor) -> Segment:
        """The conditionals' segment, where every chain has its x_{t+1} and its class."""
        schedule = self.path.model.schedule
        spread = noised_spread(self.path.clean, schedule, level, float(schedule.alpha_y[level])).to(x_next.device)

        def target_of(chains: slice) -> Target:
            return level_target(self.path.model.conditioned(labels[chains]), level)

        return conditional_segment(target_of, x_next, float(schedule.sigma_step[level]), spread)

    def _pilot(self, level: int, states: list[Tensor]) -> Pilot:
        file = self.folder / f"pilot_{level}.safetensors"
        images = min(len(states[0]), _PILOT_IMAGES)
        if self.world.is_main and not file.exists():
            x_next, labels = (
                each[:images].repeat_interleave(_PILOT_CHAINS, dim=0) for each in (states[level + 1], self.path.labels)
            )
            noise = self._noise("pilot", level, range(images), _PILOT_CHAINS)
            segment = self._segment(level, x_next, labels)
            start = x_next + float(self.path.model.schedule.sigma_step[level]) * noise.normal(x_next.shape[1:])
            groups = torch.arange(images, device=x_next.device).repeat_interleave(_PILOT_CHAINS)
            pilot, _ = pilot_run(segment, start, noise, self._kernel, groups=groups)
            save_pilot(file, pilot)
        barrier()
        return load_pilot(file)

    def _log_g(
        self, level: int, ladder: Ladder, step_size: float, states: list[Tensor], moved: Callable[[int], object]
    ) -> tuple[Tensor, Tensor]:
        """Lower and upper estimate of log G(x_{t+1}) of each image, [N]."""
        chains, schedule = self.effort.chains, self.path.model.schedule
        size = max(1, self.effort.batch_size // chains)
        batches = [range(first, min(first + size, len(states[0]))) for first in range(0, len(states[0]), size)]
        files = [self.folder / f"level_{level}_{batch[0]}.safetensors" for batch in batches]
        for turn, (batch, file) in enumerate(zip(batches, files, strict=True)):
            count = len(batch) * chains
            if file.exists() or turn % self.world.size != self.world.rank:
                moved(count * (2 * len(ladder.step_sizes) + self.effort.equilibration))
                continue
            rows = slice(batch[0], batch[-1] + 1)
            x_next, y, labels = (
                each[rows].repeat_interleave(chains, dim=0)
                for each in (states[level + 1], float(schedule.alpha_y[level]) * states[level], self.path.labels)
            )
            segment = self._segment(level, x_next, labels)

            def after_move(count: int = count) -> None:
                moved(count)

            noise = self._noise("forward", level, batch, chains)
            start = x_next + float(schedule.sigma_step[level]) * noise.normal(x_next.shape[1:])
            there = anneal(segment, ladder, start, noise, self._kernel, after_move=after_move)
            noise, steps = self._noise("back", level, batch, chains), self.effort.equilibration
            ready = equilibrate(segment, step_size, y, noise, self._kernel, steps=steps, after_move=after_move)
            returned = anneal(segment, ladder, ready.grids, noise, self._kernel, back=True, after_move=after_move)
            lower, upper = (
                sign * (each.log_weights.view(-1, chains).logsumexp(dim=1) - math.log(chains))
                for sign, each in ((1, there), (-1, returned))
            )
            save_tensors(file, {"lower": lower, "upper": upper})
        barrier()
        parts = [load_tensors(file, ("lower", "upper")) for file in files]
        return torch.cat([part["lower"] for part in parts]), torch.cat([part["upper"] for part in parts])

    @torch.no_grad()
    def _log_density(self, y: Tensor, level: int) -> Tensor:
        parts = [
            self.path.model.conditioned(labels).log_density(part, level).double()
            for part, labels in zip(y.split(_BATCH), self.path.labels.split(_BATCH), strict=True)
        ]
        return torch.cat(parts)

    def _noise(self, phase: str, level: int, images: range, chains: int) -> ImageNoise:
        seeds = [
            derive_seed("likelihood", "chain", phase, self.effort.seed, level, image, chain)
            for image in images
            for chain in range(chains)
        ]
        return ImageNoise(seeds, self.world.device)
