"""The yardstick: the same energy, Langevin step and training step as a textbook writes them.

Every convolution and dense layer is divided by its spectral norm in every call, with a power iteration each time;
parameters take part in the graph of the chains; noise level and class are embedded in every call; the positive and
the negative pass of a training step are separate; the layout of tensors is what PyTorch begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from cdrl.networks import EnergyNetwork
from cdrl.networks.embedding import noise_features, one_hot_classes
from cdrl.networks.energy import NormalizedLayer, ResidualBlock
from cdrl.schedule import NoiseSchedule, per_image

Normal = Callable[[], Tensor]
"""() -> standard normal noise in the shape of the batch."""


class PlainLayer(nn.Module):
    """A dense layer or 3x3 convolution under spectral norm, with the weights of ``layer``."""

    def __init__(self, layer: NormalizedLayer) -> None:
        super().__init__()
        outputs, inputs = layer.weight.shape[:2]
        self.layer: nn.Module
        self.layer = nn.Linear(inputs, outputs) if layer.weight.ndim == 2 else nn.Conv2d(inputs, outputs, 3, padding=1)
        self.layer.load_state_dict({"weight": layer.weight, "bias": layer.bias})
        if layer.spectral_norm:
            spectral_norm(self.layer)
            norm = self.layer.parametrizations.weight[0]  # type: ignore[union-attr, index]
            norm._u.copy_(layer.left)  # type: ignore[union-attr, operator]
            norm._v.copy_(layer.right)  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class PlainBlock(nn.Module):
    """The residual block of Table 5a, with the weights of ``block``."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.layer1, self.layer2 = PlainLayer(block.layer1), PlainLayer(block.layer2)
        self.condition = PlainLayer(block.condition)
        self.gain = nn.Parameter(block.gain.detach().clone())
        self.shortcut = nn.Identity() if block.shortcut is None else PlainLayer(block.shortcut)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.layer1(F.leaky_relu(x, 0.2))
        h = h + F.leaky_relu(self.condition(F.leaky_relu(embedding, 0.2)), 0.2)[:, :, None, None]
        h = self.layer2(F.leaky_relu(h, 0.2)) * self.gain[:, None, None]
        return h + self.shortcut(x)


class PlainEnergy(nn.Module):
    """f-hat: (grid [N, C, H, W], logsnr [N], label [N]) -> [N], with the weights of ``network``."""

    def __init__(self, network: EnergyNetwork) -> None:
        super().__init__()
        self.embed1, self.embed2 = PlainLayer(network.embed1), PlainLayer(network.embed2)
        self.classes = None if network.classes is None else PlainLayer(network.classes)
        self.stem = PlainLayer(network.stem)
        self.stages = nn.ModuleList(
            nn.ModuleList(PlainBlock(block) for block in stage)
            for stage in cast("Iterable[Iterable[ResidualBlock]]", network.stages)
        )
        self.head = nn.Linear(network.head.in_features, network.head.out_features, bias=False)
        self.head.load_state_dict(network.head.state_dict())
        self.features, self.num_classes = network.embed1.weight.shape[1], network.num_classes
        self.output_scale = network.output_scale

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
        embedding = self.embed2(F.leaky_relu(self.embed1(noise_features(logsnr, self.features)), 0.2))
        if self.classes is not None:
            embedding = embedding + self.classes(one_hot_classes(label, self.num_classes))
        h = self.stem(y)
        for index, stage in enumerate(cast("Iterable[Iterable[PlainBlock]]", self.stages)):
            if index:
                h = F.avg_pool2d(h, 2)
            for block in stage:
                h = block(h, embedding)
        h = F.relu(h).sum(dim=(2, 3))
        return self.output_scale * (h * self.head(F.leaky_relu(embedding, 0.2))).sum(dim=1)


def langevin_step(
    energy: nn.Module, schedule: NoiseSchedule, y: Tensor, x_next: Tensor, level: Tensor, label: Tensor, normal: Normal
) -> Tensor:
    """One step of eq. 5 at one level an image [N], differentiating the whole of eq. 3."""
    step_size = schedule.step_size[level]
    y = y.detach().requires_grad_()
    log_density = energy(y, schedule.logsnr[level], label) / step_size**2
    if schedule.gaussian_reference:
        log_density = log_density - y.square().sum(dim=(1, 2, 3)) / (2 * schedule.alpha_y[level] ** 2)
    log_density = log_density - schedule.precision[level] / 2 * (y - x_next).square().sum(dim=(1, 2, 3))
    (gradient,) = torch.autograd.grad(log_density.sum(), y)
    s = per_image(step_size, y)
    return (y + s**2 / 2 * gradient + s * normal()).detach()


def losses(
    x0: Tensor,
    level: Tensor,
    label: Tensor,
    normal: Normal,
    schedule: NoiseSchedule,
    energy: nn.Module,
    initializer: nn.Module,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """The losses of the energy and of the initializer in one training step (Algorithm 1)."""
    epsilon = normal()
    y = per_image(schedule.alpha_bar[level], x0) * x0 + per_image(schedule.sigma_bar[level], x0) * epsilon
    y = per_image(schedule.alpha_y[level], x0) * y
    x_next = per_image(schedule.alpha_bar[level + 1], x0) * x0
    x_next = x_next + per_image(schedule.sigma_bar[level + 1], x0) * epsilon

    proposed = initializer(x_next, schedule.logsnr[level + 1], label)
    proposed = proposed + per_image(schedule.proposal_std[level], x0) * normal()
    refined = proposed.detach()
    for _ in range(steps):
        refined = langevin_step(energy, schedule, refined, x_next, level, label, normal)

    f_refined = energy(refined, schedule.logsnr[level], label)
    f_data = energy(y, schedule.logsnr[level], label)
    energy_loss = (schedule.loss_weight[level] * (f_refined - f_data)).mean()
    return energy_loss, (refined - proposed).square().sum(dim=(1, 2, 3)).mean()
