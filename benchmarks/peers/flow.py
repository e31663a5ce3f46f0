"""Flow matching by its equations (Lipman et al., 2023; Liu et al., 2023), on the same U-Net as DDPM.

x_t = (1 - t) x_0 + t x_1 leads from noise to an image with the velocity x_1 - x_0, whose mean given x_t and the class
the network learns. Noise and images are paired at random: pairs of least distance in a batch of several classes would
tie the noise to the class, and a sampler knows of no such tie.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
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

TIME_SCALE = 1000
"""The U-Net's embedding is made for times of 0 to 1000."""
STEPS = 50

Velocity = Callable[[Tensor, float], Tensor]
"""(x [N, C, H, W], t) -> dx/dt, [N, C, H, W]."""


def on_the_way(noise: Tensor, images: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """x_t between noise (t = 0) and images (t = 1), and the velocity there, from times [N]."""
    t = time[:, None, None, None]
    return (1 - t) * noise + t * images, images - noise


class VelocityPrediction(Peer):
    """The U-Net learns the velocity at times that are uniform in 0 … 1."""

    def loss(self, images: Tensor, label: Tensor) -> Tensor:
        time = torch.rand(len(images), generator=self.noise)
        x, velocity = on_the_way(self.normal_like(images), images, time)
        return F.mse_loss(self.network(x, TIME_SCALE * time, class_labels=label).sample, velocity)


def euler(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Follow a velocity from t = 0 to 1 in ``steps`` steps of Euler's, each of one evaluation."""
    for step in range(steps):
        x = x + velocity(x, step / steps) / steps
    return x


def midpoint(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Follow a velocity from t = 0 to 1 in ``steps`` steps of the midpoint rule, each of two evaluations."""
    for step in range(steps):
        middle = x + velocity(x, step / steps) / (2 * steps)
        x = x + velocity(middle, (step + 0.5) / steps) / steps
    return x


def train(task: Task, seconds: float) -> Trained:
    """Train for CPU seconds."""
    how, channels = Optimization(), like_sized_channels(task)
    learner, spent = train_for(
        seconds, lambda updates: nullcontext(VelocityPrediction(task, new_unet(channels, task), how, updates))
    )
    network = learner.averaged()
    samplers = {
        f"Euler, {STEPS} steps": Sampler(_draw(task, network, euler, STEPS), forwards=STEPS),
        f"midpoint, {STEPS // 2} steps": Sampler(_draw(task, network, midpoint, STEPS // 2), forwards=STEPS),
    }
    return Trained(samplers, count_parameters(network), (spent,), optimization_settings(network, how))


def _draw(
    task: Task, network: Any, solver: Callable[[Velocity, Tensor, int], Tensor], steps: int
) -> Callable[[Tensor, int], Tensor]:
    @torch.no_grad()
    def draw(label: Tensor, seed: int) -> Tensor:
        x, _ = start_noise(task, label, seed)
        return solver(lambda x, t: network(x, torch.tensor(TIME_SCALE * t), class_labels=label).sample, x, steps)

    return draw
