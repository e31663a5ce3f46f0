"""Energy Matching by its equations (Balcerak et al., 2025): one scalar potential V(x), the same at all times.

Phase 1, flow: samples move by dx/dt = -grad V(x), and -grad V learns the velocity x_1 - x_0 of pairs of noise and image
that optimal transport makes in a batch. Phase 2, contrastive: V is lowered at images and raised at the ends of Langevin
chains, x <- x - dt grad V(x) + sqrt(2 dt epsilon(t)) noise, half of which begin at noise, half at images; epsilon is 0
before t = 1 and its largest from then on; the flow's loss goes on beside.

What is simpler than the authors' CIFAR-10 model: V is the sum of a U-Net's output over the image, with no transformer
behind it; chains take 40 steps of 0.05 where theirs take 200 of 0.01. What is added: classes. Pairs are made within
each class, so that noise tells nothing of the class.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from benchmarks.peers.budget import train_for
from benchmarks.peers.flow import on_the_way
from benchmarks.peers.task import Sampler, Task, Trained, count_parameters
from benchmarks.peers.unet import (
    Optimization,
    Peer,
    like_sized_channels,
    new_unet,
    optimization_settings,
    start_noise,
)

FLOW = Optimization(betas=(0.9, 0.95))
CONTRASTIVE = replace(FLOW, learning_rate=1e-4, batch_size=32)
FLOW_SHARE = 0.6
"""Of the CPU seconds, on phase 1: the authors' 145,000 updates, beside 2,000 in phase 2 of 200 gradients each."""
STEP, CHAIN = 0.05, 40
"""dt, and the steps of a chain in training, which end at t = 2."""
EPSILON = 0.01
WEIGHT, FLOOR, TRIMMED = 1e-3, -0.02, 0.1
"""Weight of the contrastive loss, where it is cut off below, and the share of chains, of the highest V, left out."""
TIMES = (1.0, 3.25)
"""At which samples are taken: the end of the flow, and where the authors' FID was best."""


class Potential(nn.Module):
    """V(x) for classes, [N]: the sum of a U-Net's output over the image, at a time that never changes."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        for module in network.modules():
            if isinstance(module, Attention):
                # Plain products: the fused kernel has no second derivative.
                module.set_processor(AttnProcessor())

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.network(x, 0, class_labels=label).sample.sum(dim=(1, 2, 3))


def gradient(potential: nn.Module, x: Tensor, label: Tensor, *, trains: bool = False) -> Tensor:
    """grad V(x), [N, C, H, W]; with ``trains`` it can be differentiated by the weights."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (result,) = torch.autograd.grad(potential(x, label).sum(), x, create_graph=trains)
    return result


def coupled(noise: Tensor, images: Tensor, label: Tensor) -> Tensor:
    """The same noise in another order: within each class, the pairs with the images of least total squared distance."""
    order = torch.arange(len(noise))
    for one in label.unique():
        rows = (label == one).nonzero()[:, 0]
        cost = torch.cdist(images[rows].flatten(1), noise[rows].flatten(1)).square()
        _, chosen = linear_sum_assignment(cost.numpy())
        order[rows] = rows[torch.from_numpy(chosen)]
    return noise[order]


def temperature(time: float) -> float:
    """epsilon(t)."""
    return EPSILON if time >= 1 else 0.0


def chain(potential: nn.Module, x: Tensor, label: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """The end of Langevin chains that begin at x at t = 0."""
    for step in range(steps):
        noise = torch.randn(x.shape, generator=generator)
        spread = math.sqrt(2 * STEP * temperature(step * STEP))
        x = x - STEP * gradient(potential, x, label) + spread * noise
    return x


class Flow(Peer):
    """Phase 1."""

    def loss(self, images: Tensor, label: Tensor) -> Tensor:
        noise = coupled(self.normal_like(images), images, label)
        x, velocity = on_the_way(noise, images, torch.rand(len(images), generator=self.noise))
        return F.mse_loss(-gradient(self.network, x, label, trains=True), velocity)


class Contrastive(Flow):
    """Phase 2."""

    def loss(self, images: Tensor, label: Tensor) -> Tensor:
        half = len(images) // 2
        begun = torch.cat([images[:half], self.normal_like(images[half:])])
        self.network.requires_grad_(False)
        ended = chain(self.network, begun, label, CHAIN, self.noise).clamp(-1, 1)
        self.network.requires_grad_(True)
        return super().loss(images, label) + contrast(self.network(images, label), self.network(ended, label))


def contrast(at_images: Tensor, at_ends: Tensor) -> Tensor:
    """The contrastive loss, a scalar, from V at images and at the ends of chains, [N] each."""
    return (WEIGHT * (at_images.mean() - trimmed_mean(at_ends))).clamp(min=FLOOR)


def trimmed_mean(values: Tensor) -> Tensor:
    """The mean of all but the highest, `TRIMMED` of them."""
    return values.sort().values[: len(values) - int(TRIMMED * len(values))].mean()


def train(task: Task, seconds: float) -> Trained:
    """Train for CPU seconds, in two phases."""

    channels = like_sized_channels(task)

    def flow(updates: int) -> Any:
        return nullcontext(Flow(task, Potential(new_unet(channels, task)), FLOW, updates))

    first, spent_first = train_for(FLOW_SHARE * seconds, flow)
    begun = first.averaged()

    def contrastive(updates: int) -> Any:
        return nullcontext(Contrastive(task, copy.deepcopy(begun).requires_grad_(True), CONTRASTIVE, updates))

    second, spent_second = train_for((1 - FLOW_SHARE) * seconds, contrastive)
    network = second.averaged()
    samplers = {f"to t = {time:g}": sampler(task, network, round(time / STEP)) for time in reversed(TIMES)}
    settings = {"flow_share": FLOW_SHARE, "epsilon": EPSILON, "step": STEP, "chain": CHAIN}
    settings |= optimization_settings(network.network, FLOW)
    return Trained(samplers, count_parameters(network), (spent_first, spent_second), settings)


def sampler(task: Task, network: nn.Module, steps: int) -> Sampler:
    """Sample by chains from noise."""

    def draw(label: Tensor, seed: int) -> Tensor:
        x, generator = start_noise(task, label, seed)
        return chain(network, x, label, steps, generator)

    return Sampler(draw, gradients=steps)
