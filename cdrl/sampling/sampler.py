"""Algorithm 2 over a proposal and a log density, whatever they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from cdrl.config import SamplingConfig
from cdrl.sampling.kernels import Kernel, Position, Target, kernel_named, langevin, recovery, tempered, with_gradient
from cdrl.sampling.noise import ImageNoise
from cdrl.schedule import NoiseSchedule

Propose = Callable[[Tensor, int], Tensor]
"""(x_next [N, *shape], level) -> mean of the proposal of y, [N, *shape]."""
LevelLogDensity = Callable[[Tensor, int], Tensor]
"""(y [N, *shape], level) -> log density up to a constant, [N]."""
Constrain = Callable[[Tensor, int], Tensor]
"""(y [N, *shape], level) -> y with what is known put back, as a new tensor: a projection, affine in y, fixed a level.

It is called after every move, and where a density is asked for.
"""


class Callback(Protocol):
    """Sees every move: step 0 is the proposal, step k the chain's k-th step; ``y`` is [N, *shape]."""

    def __call__(self, *, level: int, step: int, y: Tensor) -> None: ...


class SamplerSettings(TypedDict):
    """What `sample` wants to know beside densities and noise."""

    steps: Sequence[int]
    step_scale: float
    temperature: float
    denoise: float
    kernel: Kernel


AUTO_STEPS = 5
"""Steps a level of ``steps: auto``, one fewer at the top, so that six levels cost 29 gradients and denoising one."""
AUTO_REACH = 15
"""So many steps of the trained size go as far as those of ``steps: auto``, unless a run has a number of its own."""
AUTO_TEMPERATURE = 0.72


def resolved(sampling: SamplingConfig, trained_steps: int) -> SamplingConfig:
    """The configuration with nothing left open, for a model trained with ``trained_steps`` a level."""
    steps = trained_steps if sampling.steps is None else sampling.steps
    usual = AUTO_TEMPERATURE if steps == "auto" else 1.0
    temperature = usual if sampling.temperature is None else sampling.temperature
    return sampling.model_copy(update={"steps": steps, "temperature": temperature})


def deciding(sampling: SamplingConfig, trained_steps: int) -> dict[str, Any]:
    """Those of the `resolved` settings, by name, that images drawn under them depend on."""
    settings = resolved(sampling, trained_steps).model_dump()
    idle: set[str] = set()
    if sampling.kernel != "hmc":
        idle |= {"leapfrog_steps"}
    if settings["steps"] in ("auto", 0, trained_steps):
        idle |= {"step_adjustment"}
    if settings["steps"] == 0:
        idle |= {"kernel", "leapfrog_steps", "temperature"}
    return {name: value for name, value in settings.items() if name not in idle}


def sampler_settings(
    sampling: SamplingConfig, trained_steps: int, num_levels: int, reach: int = AUTO_REACH
) -> SamplerSettings:
    """A configuration's answers to `sample`, for a model trained with ``trained_steps`` a level.

    Args:
        reach: how many steps of the trained size those of ``steps: auto`` go as far as.

    Raises:
        ValueError: there is no such kernel.
    """
    sampling = resolved(sampling, trained_steps)
    assert sampling.steps is not None
    assert sampling.temperature is not None
    if sampling.steps == "auto":
        steps = [AUTO_STEPS] * (num_levels - 1) + [AUTO_STEPS - 1]
        step_scale = step_adjustment(reach, AUTO_STEPS)
    else:
        steps = [sampling.steps] * num_levels
        step_scale = step_adjustment(trained_steps, sampling.steps) if sampling.step_adjustment else 1.0
    return {
        "steps": steps,
        "step_scale": step_scale,
        "temperature": sampling.temperature,
        "denoise": sampling.denoise,
        "kernel": kernel_named(sampling.kernel, sampling.leapfrog_steps),
    }


def refine(
    position: Position,
    step_size: Tensor,
    noise: ImageNoise,
    steps: int,
    kernel: Kernel = langevin,
    after: Callable[[Tensor, int], Tensor] | None = None,
) -> Position:
    """``steps`` moves of a chain (eq. 5); ``after(y, k)`` is called with k = 1 … steps and may return another y."""
    for k in range(1, steps + 1):
        position = kernel(position, step_size, noise)
        y = position.y if after is None else after(position.y, k)
        if y is not position.y:
            position = position.moved(y)
    return position


@torch.no_grad()
def sample(
    schedule: NoiseSchedule,
    propose: Propose,
    log_density: LevelLogDensity,
    noise: ImageNoise,
    shape: tuple[int, ...],
    *,
    steps: int | Sequence[int],
    step_scale: float = 1.0,
    temperature: float = 1.0,
    denoise: float = 2.0,
    kernel: Kernel = langevin,
    passes: int = 1,
    constrain: Constrain | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw one sample for each stream of ``noise`` (Algorithm 2): x_0 denoised once, [N, *shape].

    Args:
        steps: steps of the chain a level, K, or of each level from 0 up; 0 leaves the initializer alone.
        step_scale: factor on the step sizes; `step_adjustment` for Table 2's rule.
        temperature: of the chains, which draw from p(y_t | x_{t+1})^(1 / temperature); it leaves the proposals alone.
        denoise: factor c on the gradient in the last, noise-free step (eq. 18); 0 leaves x_0 / alpha_bar_0.
        kernel: of the chains: `langevin`, `mala` or `hmc` of so many leapfrog steps.
        passes: visits to each level. Before every visit but the first x_{t+1} is drawn anew from the x_t at hand
            (Lugmayr et al., 2022): a Gibbs sampler of both. Free images do not need it; with ``constrain``, x_{t+1}
            was drawn from less than is known of x_t, and only this makes up for it.
    """
    schedule = schedule.to(noise.device)
    steps = [steps] * schedule.num_levels if isinstance(steps, int) else steps
    if len(steps) != schedule.num_levels:
        raise ValueError(f"steps: expected a number for each of {schedule.num_levels} levels, found {len(steps)}")
    scale = step_scale * math.sqrt(temperature)
    x = noise.normal(shape)
    for level, visit in itertools.product(reversed(range(schedule.num_levels)), range(passes)):
        if visit:
            x = schedule.alpha_step[level] * x + schedule.sigma_step[level] * noise.normal(shape)

        def put_back(y: Tensor, level: int = level) -> Tensor:
            return y if constrain is None else constrain(y, level)

        def after(y: Tensor, k: int, level: int = level, put_back: Callable[[Tensor], Tensor] = put_back) -> Tensor:
            y = put_back(y)
            if callback is not None:
                callback(level=level, step=k, y=y)
            return y

        def at_level(y: Tensor, level: int = level) -> Tensor:
            return log_density(y, level)

        target = tempered(recovery(with_gradient(at_level), x, schedule.precision[level]), temperature)
        if constrain is not None:
            target = within(target, put_back)
        y = after(propose(x, level) + schedule.proposal_std[level] * noise.normal(shape), 0)
        chain = refine(Position(y, target), scale * schedule.step_size[level], noise, steps[level], kernel, after)
        x = chain.y / schedule.alpha_y[level]
    return denoised(schedule, log_density, x, denoise)


def within(target: Target, put_back: Callable[[Tensor], Tensor]) -> Target:
    """A target on the places that a projection leaves alone, with no slope across them.

    A kernel that accepts or rejects then weighs the way of what is unknown alone: that of what is known, which is
    put back anyhow, would refuse good moves and leave another density unchanged than the conditional one.
    """

    def along(y: Tensor) -> tuple[Tensor, Tensor]:
        place, pull_back = torch.func.vjp(put_back, y)[:2]
        value, gradient = target(place)
        return value, pull_back(gradient)[0]

    return along


def denoised(schedule: NoiseSchedule, log_density: LevelLogDensity, x: Tensor, factor: float, level: int = 0) -> Tensor:
    """(x_t + c sigma_bar_t^2 grad_{x_t} f(alpha_y x_t)) / alpha_bar_t, eq. 18 at t = 0; c = 1 is the posterior mean."""
    if factor:
        alpha = schedule.alpha_y[level]
        _, gradient = with_gradient(lambda y: log_density(y, level))(alpha * x)
        x = x + factor * schedule.sigma_bar[level] ** 2 * alpha * gradient
    return x / schedule.alpha_bar[level]


def step_adjustment(trained_steps: int, steps: int) -> float:
    """Table 2's factor on the step size, sqrt(K / K'), for K' steps where K were trained."""
    return math.sqrt(trained_steps / steps) if steps else 1.0
