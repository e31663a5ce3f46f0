"""The sampler's settings made concrete: defaults filled in, idle ones refused, turned into a plan for every level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cdrl.arguments import plain
from cdrl.config import SamplerSettings
from cdrl.registry import KERNELS, registered
from cdrl.sampling.kernels import Kernel, langevin

AUTO_STEPS = 5
"""Steps a level of ``steps: auto``, one fewer at the highest level: 29 gradients for six levels."""
AUTO_REACH = 15
"""How many steps of the trained size those of ``steps: auto`` go as far as, for a run that names no number of steps."""
AUTO_TEMPERATURE = 0.72
# The three were tuned on configs/digits.yaml and configs/quickstart.yaml; for another run, `compare-steps` measures
# what they cost.


@dataclass(frozen=True)
class ChainPlan:
    """Plan of the sampler: steps, step sizes and kernel at each level.

    Attributes:
        steps: of the chain at each level, from level 0 up; 0 leaves the initializer alone.
        step_scale: factor on the trained step sizes.
        temperature: chains draw from p(y_t | x_{t+1})^(1 / temperature); proposals are not changed.
        denoise: factor c on the gradient in the last, noise-free step (eq. 18); 0 leaves x_0 / alpha_bar_0.
        kernel: the move of a chain.
        passes: visits to each level. Before every visit but the first, x_{t+1} is drawn anew from the x_t at hand
            (Lugmayr et al., 2022): a Gibbs sampler of both. Only inpainting needs more than one: x_{t+1} was drawn
            from less than is known of x_t.
    """

    steps: tuple[int, ...]
    step_scale: float = 1.0
    temperature: float = 1.0
    denoise: float = 2.0
    kernel: Kernel = langevin
    passes: int = 1


def with_defaults(settings: SamplerSettings, trained_steps: int) -> SamplerSettings:
    """Fill in the defaults of settings that are None.

    Args:
        trained_steps: K, the steps a level that the model was trained with.
    """
    steps = trained_steps if settings.steps is None else settings.steps
    usual = AUTO_TEMPERATURE if steps == "auto" else 1.0
    temperature = usual if settings.temperature is None else settings.temperature
    return settings.model_copy(update={"steps": steps, "temperature": temperature})


def changed(settings: SamplerSettings, changes: Mapping[str, Any]) -> SamplerSettings:
    """Change some settings; None leaves a setting as it is.

    Raises:
        ValueError: a value is not allowed, or a change would make no difference beside the others.
    """
    given = {name: plain(value) for name, value in changes.items() if value is not None}
    try:
        # Strictly: neither True nor '3' is a number.
        result = SamplerSettings.model_validate({**settings.model_dump(), **given}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise ValueError(str(first["ctx"]["error"])) from None
        raise ValueError(f"{first['loc'][0]}: {first['msg']}, found {first['input']!r}") from None
    for name, reason in idle_settings(result).items():
        if name in given:
            raise ValueError(f"{name}: would change nothing {reason}")
    return result


def idle_settings(settings: SamplerSettings) -> dict[str, str]:
    """Settings that have no effect given the others, each with the reason."""
    idle = {}
    if settings.kernel != "hmc":
        idle["leapfrog_steps"] = f"with the kernel {settings.kernel}: it is for hmc"
    if settings.steps == "auto":
        idle["step_adjustment"] = "with steps auto, whose steps have sizes of their own"
    if settings.steps == 0:
        reason = "with 0 steps: no chain moves"
        idle |= dict.fromkeys(("step_adjustment", "temperature", "kernel", "leapfrog_steps"), reason)
    return idle


def effective(settings: SamplerSettings) -> dict[str, Any]:
    """Settings that have an effect, by name; these are stored in the records of images."""
    idle = idle_settings(settings)
    return {name: value for name, value in settings.model_dump().items() if name not in idle}


def settings_that_change_images(settings: SamplerSettings, trained_steps: int) -> dict[str, Any]:
    """Settings, by name, that change the images drawn under them."""
    told = effective(with_defaults(settings, trained_steps))
    if told["steps"] == trained_steps:
        told.pop("step_adjustment", None)
    return told


def plan_chains(
    settings: SamplerSettings, trained_steps: int, num_levels: int, auto_reach: int = AUTO_REACH
) -> ChainPlan:
    """Turn settings into a plan for each of ``num_levels`` levels.

    Args:
        trained_steps: K, the steps a level that the model was trained with.
        auto_reach: how many steps of the trained size those of ``steps: auto`` go as far as.

    Raises:
        ValueError: there is no such kernel.
    """
    concrete = with_defaults(settings, trained_steps)
    assert concrete.steps is not None
    assert concrete.temperature is not None
    make_kernel = registered("kernel", concrete.kernel, KERNELS)
    if concrete.steps == "auto":
        steps = (AUTO_STEPS,) * (num_levels - 1) + (AUTO_STEPS - 1,)
        step_scale = step_adjustment(auto_reach, AUTO_STEPS)
    else:
        steps = (concrete.steps,) * num_levels
        step_scale = step_adjustment(trained_steps, concrete.steps) if concrete.step_adjustment else 1.0
    return ChainPlan(steps, step_scale, concrete.temperature, concrete.denoise, make_kernel(concrete))


def step_adjustment(trained_steps: int, steps: int) -> float:
    """Table 2's factor on the step size, sqrt(K / K'), for K' steps where K were trained."""
    return math.sqrt(trained_steps / steps) if steps else 1.0
