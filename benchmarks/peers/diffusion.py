"""DDPM and DDIM by diffusers: its schedulers train and sample its U-Net (Ho et al., 2020; Song et al., 2021)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from benchmarks.peers.budget import train_for
from benchmarks.peers.task import Sampler, Task, Trained, count_parameters
from benchmarks.peers.unet import (
    Optimization,
    Peer,
    like_sized_channels,
    new_unet,
    optimization_settings,
    start_noise,
)

TIMES = 1000
SCHEDULE: dict[str, Any] = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}
"""The cosine schedule, which Nichol and Dhariwal (2021) found better than DDPM's linear one for small images; the
velocity of Salimans and Ho (2022); and the spacing that Lin et al. (2024) recommend for few steps."""
DDIM_STEPS, DDPM_STEPS = 50, 250


class VelocityPrediction(Peer):
    """The U-Net learns v = sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) x_0 from x_t, rotated by a right angle.

    Of noise alone, which the cosine schedule ends in, nothing of the image follows; and where a prediction of the noise
    errs a little in much noise, the image that it stands for errs by far (Salimans and Ho, 2022).
    """

    scheduler = DDPMScheduler(TIMES, **SCHEDULE)

    def loss(self, images: Tensor, label: Tensor) -> Tensor:
        noise = self.normal_like(images)
        time = torch.randint(TIMES, (len(images),), generator=self.noise)
        noisy = self.scheduler.add_noise(images, noise, time)
        velocity = self.scheduler.get_velocity(images, noise, time)
        return F.mse_loss(self.network(noisy, time, class_labels=label).sample, velocity)


def train(task: Task, seconds: float) -> Trained:
    """Train for CPU seconds."""
    how, channels = Optimization(), like_sized_channels(task)
    learner, spent = train_for(
        seconds, lambda updates: nullcontext(VelocityPrediction(task, new_unet(channels, task), how, updates))
    )
    network = learner.averaged()
    ddim, ddpm = DDIMScheduler(TIMES, **SCHEDULE), DDPMScheduler(TIMES, **SCHEDULE)
    samplers = {
        f"DDIM, {DDIM_STEPS} steps": sampler(task, network, ddim, DDIM_STEPS),
        f"DDPM, {DDPM_STEPS} steps": sampler(task, network, ddpm, DDPM_STEPS),
    }
    settings = {**SCHEDULE, "times": TIMES, **optimization_settings(network, how)}
    return Trained(samplers, count_parameters(network), (spent,), settings)


def sampler(task: Task, network: Any, scheduler: Any, steps: int) -> Sampler:
    """Sample by one of diffusers' schedulers in some of its steps."""

    @torch.no_grad()
    def draw(label: Tensor, seed: int) -> Tensor:
        x, generator = start_noise(task, label, seed)
        scheduler.set_timesteps(steps)
        for time in scheduler.timesteps:
            noise = network(x, time, class_labels=label).sample
            x = scheduler.step(noise, time, x, generator=generator).prev_sample
        return x

    return Sampler(draw, forwards=steps)
