"""Noise schedule: noise levels, step sizes and weights of every level, computed once in double precision."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdrl.config import ScheduleConfig


@dataclass(frozen=True)
class NoiseSchedule:
    """Tables over the levels t = 0 … T-1 of the energies, and t = 0 … T where noted, in float32 by default.

    A level's marginal is x_t = alpha_bar_t x_0 + sigma_bar_t eps, the energy lives on y_t = alpha_y_t x_t, and
    x_{t+1} = y_t + sigma_{t+1} eps. The highest level is a marginal energy: alpha_y = 1 and no quadratic term.
    """

    logsnr: Tensor
    """lambda_t = log(alpha_bar_t^2 / sigma_bar_t^2), [T + 1]."""
    alpha_bar: Tensor
    """Share of the clean image, sqrt(sigmoid(lambda_t)), [T + 1]."""
    sigma_bar: Tensor
    """Standard deviation of the accumulated noise, sqrt(sigmoid(-lambda_t)), [T + 1]."""
    alpha_step: Tensor
    """alpha_{t+1} = alpha_bar_{t+1} / alpha_bar_t, [T]."""
    sigma_step: Tensor
    """sigma_{t+1} = sqrt(1 - alpha_{t+1}^2), the noise between level t and t + 1, [T]."""
    alpha_y: Tensor
    """y_t / x_t: alpha_{t+1}, but 1 at the highest level, [T]."""
    precision: Tensor
    """1 / sigma_{t+1}^2, weight of the quadratic term in eq. 3; 0 at the highest level, [T]."""
    step_size: Tensor
    """Langevin step size s_t (eq. 16), [T]."""
    temperature: Tensor
    """Divisor that turns f-hat into the log density f: s_t^2 (Appendix A.2), or 1, [T]."""
    proposal_std: Tensor
    """Noise of the proposal (eq. 6), alpha_y_t sigma_bar_t / sigma_bar_{t+1} sigma_{t+1}, [T]; 0 without one."""
    loss_weight: Tensor
    """Weight of the energy loss, sigma_1 / sigma_{t+1}, [T]."""
    gaussian_reference: bool = False
    """Whether the energies' densities are relative to N(0, alpha_y_t^2 I)."""

    @property
    def num_levels(self) -> int:
        """T, the number of energies."""
        return len(self.step_size)

    @classmethod
    def from_config(
        cls,
        config: ScheduleConfig,
        *,
        gaussian_reference: bool = False,
        initializer: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> NoiseSchedule:
        """Compute the tables; without ``initializer`` chains start at x_{t+1}, and ``proposal_std`` is 0."""
        levels = {"cosine": _cosine_logsnr, "drl": _drl_logsnr}[config.kind]
        schedule = cls._from_logsnr(levels(config), config, gaussian_reference, dtype)
        if initializer:
            return schedule
        return dataclasses.replace(schedule, proposal_std=torch.zeros_like(schedule.proposal_std))

    @classmethod
    def _from_logsnr(
        cls, logsnr: Tensor, config: ScheduleConfig, gaussian_reference: bool, dtype: torch.dtype
    ) -> NoiseSchedule:
        """All tables from lambda_0 … lambda_T (float64 [T + 1]) and the step-size rule of ``config``."""
        alpha_bar, sigma_bar = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
        alpha_step = alpha_bar[1:] / alpha_bar[:-1]
        sigma_step = (1 - alpha_step**2).sqrt()
        alpha_y, precision = alpha_step.clone(), sigma_step**-2
        alpha_y[-1], precision[-1] = 1.0, 0.0
        growth = sigma_bar[:-1] / sigma_bar[0] if config.step_scaling == "sigma_bar" else torch.ones_like(alpha_step)
        step_size = (config.step_coefficient * growth).sqrt() * sigma_step
        tables = {
            "logsnr": logsnr,
            "alpha_bar": alpha_bar,
            "sigma_bar": sigma_bar,
            "alpha_step": alpha_step,
            "sigma_step": sigma_step,
            "alpha_y": alpha_y,
            "precision": precision,
            "step_size": step_size,
            # The square of the rounded step: in a Langevin step it cancels to the last bit, as in the authors' code.
            "temperature": step_size.to(dtype) ** 2
            if config.temperature == "step_size"
            else torch.ones_like(step_size),
            "proposal_std": alpha_y * sigma_bar[:-1] / sigma_bar[1:] * sigma_step,
            "loss_weight": sigma_step[0] / sigma_step,
        }
        return cls(**{name: table.to(dtype) for name, table in tables.items()}, gaussian_reference=gaussian_reference)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """Return the same tables on another device."""
        tables: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **tables)


def _cosine_logsnr(config: ScheduleConfig) -> Tensor:
    """lambda(u) = -2 log tan(a u + b) at u = t / T (eq. 19, 20), float64 [T + 1]."""
    b = math.atan(math.exp(-config.logsnr_max / 2))
    a = math.atan(math.exp(-config.logsnr_min / 2)) - b
    u = torch.arange(config.num_levels + 1, dtype=torch.float64) / config.num_levels
    return -2 * torch.log(torch.tan(a * u + b))


def _drl_logsnr(config: ScheduleConfig) -> Tensor:
    """DRL's levels, selected from 1000 steps of a linear beta schedule (Gao et al., 2021), float64 [T + 1]."""
    first = min(config.num_levels, 6)
    more = config.num_levels - first
    cut = [t * (500 // (first - 1)) for t in range(first)]
    cut += [500 + round(499 * (t + 1) / (more + 1)) for t in range(more)]
    variance = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(dim=0)
    return torch.logit(variance[[*cut, 999]])


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape a scalar or one value per image to broadcast over ``like``: [] or [N, 1, …]."""
    return values if values.ndim == 0 else values.reshape(-1, *[1] * (like.ndim - 1))
